"""Text towers of CLIP and SigLIP in transformers (arXiv 2103.00020, 2303.15343, 2502.14786): token states,
not the pooled one.

CLIP is causal, so that what follows a prompt cannot reach it.
SigLIP was trained on padding to 64 tokens without a mask.
"""

from typing import Any

from sanakit.contracts import TextSpec
from sanakit.text_encoders.base import TEXT_ENCODERS
from sanakit.text_encoders.transformer import HubEncoder

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def config(width: int, inner: int, *, layers: int, heads: int, vocab: int, positions: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
    }


class CLIP(HubEncoder):
    model_class = "CLIPTextModel"
    marks = ("<bos>", "<eos>")
    small = {**SMALL, "max_position_embeddings": 77}


@TEXT_ENCODERS.register("clip-vit-l-14", title="CLIP ViT-L/14, 768-d", licence="MIT")
class CLIPL(CLIP):
    hub = "openai/clip-vit-large-patch14"
    spec = TextSpec(embed_dim=768, max_tokens=77)
    published = config(768, 3072, layers=12, heads=12, vocab=49408, positions=77)


@TEXT_ENCODERS.register("clip-vit-bigg-14", title="OpenCLIP ViT-bigG/14 as SDXL reads it, 1280-d", licence="MIT")
class CLIPBigG(CLIP):
    """SDXL takes the last layer but one, before the final norm."""

    hub = "stabilityai/stable-diffusion-xl-base-1.0:text_encoder_2"
    spec = TextSpec(embed_dim=1280, max_tokens=77, layer=-2)
    published = config(1280, 5120, layers=32, heads=20, vocab=49408, positions=77)


class SigLIP(HubEncoder):
    model_class = "SiglipTextModel"
    marks = ("", "<eos>")
    small = {**SMALL, "max_position_embeddings": 64, "projection_size": 16}


@TEXT_ENCODERS.register("siglip-so400m", title="SigLIP So400m/14, 1152-d", licence="Apache-2.0")
class SigLIPSo400m(SigLIP):
    hub = "google/siglip-so400m-patch14-384"
    spec = TextSpec(embed_dim=1152, max_tokens=64, attend_padding=True)
    published = config(1152, 4304, layers=27, heads=16, vocab=32000, positions=64)


@TEXT_ENCODERS.register("siglip2-base", title="SigLIP 2 B/16, multilingual, 768-d", licence="Apache-2.0")
class SigLIP2Base(SigLIP):
    """Trained on lower-case text."""

    hub = "google/siglip2-base-patch16-224"
    spec = TextSpec(embed_dim=768, max_tokens=64, attend_padding=True, lower_case=True)
    published = config(768, 3072, layers=12, heads=12, vocab=256000, positions=64)
