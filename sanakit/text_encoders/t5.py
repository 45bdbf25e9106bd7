"""Encoders of T5 v1.1, Flan-T5 and UMT5 (arXiv 1910.10683, 2210.11416, 2304.09151) and of T5Gemma (2504.06225)
and T5Gemma 2 (2512.14856).

The decoder is neither read nor kept. SD3 and FLUX feed T5 without a mask; here the mask is passed, as PixArt does.
"""

from typing import Any

from sanakit.contracts import TextSpec
from sanakit.text_encoders.base import TEXT_ENCODERS
from sanakit.text_encoders.decoder import SMALL, decoder
from sanakit.text_encoders.transformer import HubEncoder, special_ids


def config(width: int, inner: int, *, layers: int, heads: int, vocab: int = 32128) -> dict[str, Any]:
    """Heads are 64 wide whatever the model's width."""
    return {
        "d_model": width,
        "d_ff": inner,
        "num_layers": layers,
        "num_heads": heads,
        "d_kv": 64,
        "vocab_size": vocab,
        "feed_forward_proj": "gated-gelu",
    }


class T5(HubEncoder):
    model_class = "T5EncoderModel"
    marks = ("", "<eos>")
    small = {"d_model": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2, "d_kv": 8, "feed_forward_proj": "gated-gelu"}


@TEXT_ENCODERS.register("t5-v1.1-xxl", title="T5 v1.1 XXL as FLUX.1 ships it, 4096-d", licence="Apache-2.0")
class T5XXL(T5):
    hub = "black-forest-labs/FLUX.1-schnell:text_encoder_2"
    spec = TextSpec(embed_dim=4096, max_tokens=300)
    published = config(4096, 10240, layers=24, heads=64)


@TEXT_ENCODERS.register("flan-t5-base", title="Flan-T5 base, 768-d", licence="Apache-2.0")
class FlanBase(T5):
    hub = "google/flan-t5-base"
    spec = TextSpec(embed_dim=768, max_tokens=300)
    published = config(768, 2048, layers=12, heads=12)


@TEXT_ENCODERS.register("flan-t5-large", title="Flan-T5 large, 1024-d", licence="Apache-2.0")
class FlanLarge(T5):
    hub = "google/flan-t5-large"
    spec = TextSpec(embed_dim=1024, max_tokens=300)
    published = config(1024, 2816, layers=24, heads=16)


@TEXT_ENCODERS.register("flan-t5-xl", title="Flan-T5 XL, 2048-d", licence="Apache-2.0")
class FlanXL(T5):
    hub = "google/flan-t5-xl"
    spec = TextSpec(embed_dim=2048, max_tokens=300)
    published = config(2048, 5120, layers=24, heads=32)


@TEXT_ENCODERS.register("umt5-xxl", title="UMT5 XXL as Wan 2.1 ships it, 107 languages, 4096-d", licence="Apache-2.0")
class UMT5XXL(T5):
    hub = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers:text_encoder"
    model_class = "UMT5EncoderModel"
    spec = TextSpec(embed_dim=4096, max_tokens=300)
    published = config(4096, 10240, layers=24, heads=64, vocab=256384)


class T5Gemma(HubEncoder):
    model_class = "T5GemmaEncoderModel"
    marks = ("<bos>", "")

    @classmethod
    def build(cls, config: dict[str, Any]) -> Any:
        """Encoder and decoder are configured alike; the decoder is not built."""
        from transformers import T5GemmaConfig, T5GemmaEncoderModel, T5GemmaModuleConfig

        part = {k: v for k, v in config.items()}
        both = {"encoder": T5GemmaModuleConfig(**part), "decoder": T5GemmaModuleConfig(**part)}
        vocab = {"vocab_size": part["vocab_size"], **special_ids()}
        return T5GemmaEncoderModel(T5GemmaConfig(**both, **vocab, is_encoder_decoder=False))


@TEXT_ENCODERS.register("t5gemma-b-b", title="Encoder of T5Gemma B-B, 768-d; gated", licence="Gemma")
class T5GemmaBase(T5Gemma):
    hub = "google/t5gemma-b-b-prefixlm"
    spec = TextSpec(embed_dim=768, max_tokens=300)
    published = decoder(768, 2048, layers=12, heads=12, groups=12, head_dim=64, vocab=256000)
    small = SMALL


@TEXT_ENCODERS.register("t5gemma-2b-2b", title="Encoder of T5Gemma 2B-2B, 2304-d; gated", licence="Gemma")
class T5Gemma2B(T5Gemma):
    hub = "google/t5gemma-2b-2b-prefixlm"
    spec = TextSpec(embed_dim=2304, max_tokens=300)
    published = decoder(2304, 9216, layers=26, heads=8, groups=4, head_dim=256, vocab=256000)
    small = SMALL


class T5Gemma2(HubEncoder):
    """The text part of its encoder, whose attention is that of Gemma 3 without a causal mask."""

    model_class = "T5Gemma2TextEncoder"
    marks = ("<bos>", "")
    small = SMALL

    @classmethod
    def build(cls, config: dict[str, Any]) -> Any:
        from transformers.models.t5gemma2.configuration_t5gemma2 import T5Gemma2TextConfig
        from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2TextEncoder

        return T5Gemma2TextEncoder(T5Gemma2TextConfig(**config, dropout_rate=0.0))


@TEXT_ENCODERS.register("t5gemma-2-270m", title="Text encoder of T5Gemma 2 270M, 640-d; gated", licence="Gemma")
class T5Gemma2Tiny(T5Gemma2):
    hub = "google/t5gemma-2-270m-270m"
    spec = TextSpec(embed_dim=640, max_tokens=300)
    published = decoder(640, 2048, layers=18, heads=4, groups=1, head_dim=256, vocab=262144)


@TEXT_ENCODERS.register("t5gemma-2-1b", title="Text encoder of T5Gemma 2 1B, 1152-d; gated", licence="Gemma")
class T5Gemma2Small(T5Gemma2):
    hub = "google/t5gemma-2-1b-1b"
    spec = TextSpec(embed_dim=1152, max_tokens=300)
    published = decoder(1152, 6912, layers=26, heads=4, groups=1, head_dim=256, vocab=262144)
