"""Llama 3.2 and SmolLM, decoder-only (arXiv 2407.21783, 2502.02737)."""

from sanakit.contracts import TextSpec
from sanakit.registry import row
from sanakit.text_encoders.base import TEXT_ENCODERS
from sanakit.text_encoders.decoder import SMALL, decoder
from sanakit.text_encoders.transformer import HubEncoder


class Llama(HubEncoder):
    model_class = "LlamaModel"
    small = SMALL


class Llama32(Llama):
    marks = ("<bos>", "")


TEXT_ENCODERS.table(
    globals(),
    {
        "Llama32Small": row(
            Llama32,
            "llama-3.2-1b",
            title="Llama-3.2-1B, 2048-d; gated",
            licence="Llama 3.2 Community",
            hub="meta-llama/Llama-3.2-1B",
            spec=TextSpec(embed_dim=2048, max_tokens=300),
            published=decoder(2048, 8192, layers=16, heads=32, groups=8, head_dim=64, vocab=128256),
        ),
        "Llama32Medium": row(
            Llama32,
            "llama-3.2-3b",
            title="Llama-3.2-3B, 3072-d; gated",
            licence="Llama 3.2 Community",
            hub="meta-llama/Llama-3.2-3B",
            spec=TextSpec(embed_dim=3072, max_tokens=300),
            published=decoder(3072, 8192, layers=28, heads=24, groups=8, head_dim=128, vocab=128256),
        ),
        "SmolLM2Tiny": row(
            Llama,
            "smollm2-135m",
            title="SmolLM2-135M, 576-d",
            licence="Apache-2.0",
            hub="HuggingFaceTB/SmolLM2-135M",
            spec=TextSpec(embed_dim=576, max_tokens=300),
            published=decoder(576, 1536, layers=30, heads=9, groups=3, vocab=49152),
        ),
        "SmolLM2Small": row(
            Llama,
            "smollm2-360m",
            title="SmolLM2-360M, 960-d",
            licence="Apache-2.0",
            hub="HuggingFaceTB/SmolLM2-360M",
            spec=TextSpec(embed_dim=960, max_tokens=300),
            published=decoder(960, 2560, layers=32, heads=15, groups=5, vocab=49152),
        ),
        "SmolLM2Medium": row(
            Llama,
            "smollm2-1.7b",
            title="SmolLM2-1.7B, 2048-d",
            licence="Apache-2.0",
            hub="HuggingFaceTB/SmolLM2-1.7B",
            spec=TextSpec(embed_dim=2048, max_tokens=300),
            published=decoder(2048, 8192, layers=24, heads=32, groups=32, vocab=49152),
        ),
    },
)


@TEXT_ENCODERS.register("smollm3-3b", title="SmolLM3-3B, six languages, 2048-d", licence="Apache-2.0")
class SmolLM3(HubEncoder):
    hub = "HuggingFaceTB/SmolLM3-3B"
    model_class = "SmolLM3Model"
    spec = TextSpec(embed_dim=2048, max_tokens=300)
    published = decoder(2048, 11008, layers=36, heads=16, groups=4, vocab=128256)
    small = {k: v for k, v in SMALL.items() if k != "head_dim"}
