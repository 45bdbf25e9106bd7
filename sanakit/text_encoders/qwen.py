"""Qwen, decoder-only and multilingual (arXiv 2412.15115, 2505.09388). Its tokenizer begins with no special token."""

from sanakit.contracts import TextSpec
from sanakit.text_encoders.base import TEXT_ENCODERS
from sanakit.text_encoders.decoder import SMALL, decoder
from sanakit.text_encoders.transformer import HubEncoder

VOCAB = 151936


class Qwen25(HubEncoder):
    model_class = "Qwen2Model"
    small = {k: v for k, v in SMALL.items() if k != "head_dim"}


@TEXT_ENCODERS.register("qwen2.5-0.5b", title="Qwen2.5-0.5B, 896-d", licence="Apache-2.0")
class Qwen25Tiny(Qwen25):
    hub = "Qwen/Qwen2.5-0.5B"
    spec = TextSpec(embed_dim=896, max_tokens=300)
    published = decoder(896, 4864, layers=24, heads=14, groups=2, vocab=VOCAB)


@TEXT_ENCODERS.register("qwen2.5-1.5b", title="Qwen2.5-1.5B, 1536-d", licence="Apache-2.0")
class Qwen25Small(Qwen25):
    hub = "Qwen/Qwen2.5-1.5B"
    spec = TextSpec(embed_dim=1536, max_tokens=300)
    published = decoder(1536, 8960, layers=28, heads=12, groups=2, vocab=VOCAB)


@TEXT_ENCODERS.register("qwen2.5-3b", title="Qwen2.5-3B, 2048-d", licence="Qwen Research")
class Qwen25Medium(Qwen25):
    hub = "Qwen/Qwen2.5-3B"
    spec = TextSpec(embed_dim=2048, max_tokens=300)
    published = decoder(2048, 11008, layers=36, heads=16, groups=2, vocab=VOCAB)


class Qwen3(HubEncoder):
    model_class = "Qwen3Model"
    small = SMALL


@TEXT_ENCODERS.register("qwen3-0.6b", title="Qwen3-0.6B, 1024-d", licence="Apache-2.0")
class Qwen3Tiny(Qwen3):
    hub = "Qwen/Qwen3-0.6B"
    spec = TextSpec(embed_dim=1024, max_tokens=300)
    published = decoder(1024, 3072, layers=28, heads=16, groups=8, head_dim=128, vocab=VOCAB)


@TEXT_ENCODERS.register("qwen3-1.7b", title="Qwen3-1.7B, 2048-d", licence="Apache-2.0")
class Qwen3Small(Qwen3):
    hub = "Qwen/Qwen3-1.7B"
    spec = TextSpec(embed_dim=2048, max_tokens=300)
    published = decoder(2048, 6144, layers=28, heads=16, groups=8, head_dim=128, vocab=VOCAB)


@TEXT_ENCODERS.register("qwen3-4b", title="Qwen3-4B, 2560-d", licence="Apache-2.0")
class Qwen3Medium(Qwen3):
    hub = "Qwen/Qwen3-4B"
    spec = TextSpec(embed_dim=2560, max_tokens=300)
    published = decoder(2560, 9728, layers=36, heads=32, groups=8, head_dim=128, vocab=VOCAB)
