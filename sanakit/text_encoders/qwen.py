"""Qwen, decoder-only and multilingual (arXiv 2412.15115, 2505.09388). Its tokenizer begins with no special token."""

from sanakit.contracts import TextSpec
from sanakit.registry import row
from sanakit.text_encoders.base import TEXT_ENCODERS
from sanakit.text_encoders.decoder import SMALL, decoder
from sanakit.text_encoders.transformer import HubEncoder

VOCAB = 151936


class Qwen25(HubEncoder):
    model_class = "Qwen2Model"
    small = {k: v for k, v in SMALL.items() if k != "head_dim"}


class Qwen3(HubEncoder):
    model_class = "Qwen3Model"
    small = SMALL


TEXT_ENCODERS.table(
    globals(),
    {
        "Qwen25Tiny": row(
            Qwen25,
            "qwen2.5-0.5b",
            title="Qwen2.5-0.5B, 896-d",
            licence="Apache-2.0",
            hub="Qwen/Qwen2.5-0.5B",
            spec=TextSpec(embed_dim=896, max_tokens=300),
            published=decoder(896, 4864, layers=24, heads=14, groups=2, vocab=VOCAB),
        ),
        "Qwen25Small": row(
            Qwen25,
            "qwen2.5-1.5b",
            title="Qwen2.5-1.5B, 1536-d",
            licence="Apache-2.0",
            hub="Qwen/Qwen2.5-1.5B",
            spec=TextSpec(embed_dim=1536, max_tokens=300),
            published=decoder(1536, 8960, layers=28, heads=12, groups=2, vocab=VOCAB),
        ),
        "Qwen25Medium": row(
            Qwen25,
            "qwen2.5-3b",
            title="Qwen2.5-3B, 2048-d",
            licence="Qwen Research",
            hub="Qwen/Qwen2.5-3B",
            spec=TextSpec(embed_dim=2048, max_tokens=300),
            published=decoder(2048, 11008, layers=36, heads=16, groups=2, vocab=VOCAB),
        ),
        "Qwen3Tiny": row(
            Qwen3,
            "qwen3-0.6b",
            title="Qwen3-0.6B, 1024-d",
            licence="Apache-2.0",
            hub="Qwen/Qwen3-0.6B",
            spec=TextSpec(embed_dim=1024, max_tokens=300),
            published=decoder(1024, 3072, layers=28, heads=16, groups=8, head_dim=128, vocab=VOCAB),
        ),
        "Qwen3Small": row(
            Qwen3,
            "qwen3-1.7b",
            title="Qwen3-1.7B, 2048-d",
            licence="Apache-2.0",
            hub="Qwen/Qwen3-1.7B",
            spec=TextSpec(embed_dim=2048, max_tokens=300),
            published=decoder(2048, 6144, layers=28, heads=16, groups=8, head_dim=128, vocab=VOCAB),
        ),
        "Qwen3Medium": row(
            Qwen3,
            "qwen3-4b",
            title="Qwen3-4B, 2560-d",
            licence="Apache-2.0",
            hub="Qwen/Qwen3-4B",
            spec=TextSpec(embed_dim=2560, max_tokens=300),
            published=decoder(2560, 9728, layers=36, heads=32, groups=8, head_dim=128, vocab=VOCAB),
        ),
    },
)
