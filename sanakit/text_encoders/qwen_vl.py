"""Text towers of vision-language models that image models read prompts with: Qwen2.5-VL (arXiv 2502.13923; Qwen-Image),
Qwen3-VL (2511.21631) and Mistral 3 (FLUX.2). The vision towers are neither read nor kept.
"""

from typing import Any

from sanakit.contracts import TextSpec
from sanakit.registry import row
from sanakit.text_encoders.base import TEXT_ENCODERS
from sanakit.text_encoders.decoder import SMALL, decoder
from sanakit.text_encoders.transformer import HubEncoder


def rotary(*sections: int) -> dict[str, Any]:
    """Positions in time, height and width share a head's rotary pairs; those of text are equal."""
    return {"rope_scaling": {"rope_type": "default", "type": "default", "mrope_section": list(sections)}}


class Qwen25VL(HubEncoder):
    model_class = "Qwen2_5_VLTextModel"
    small = {**{k: v for k, v in SMALL.items() if k != "head_dim"}, **rotary(1, 1, 2)}


class Qwen3VL(HubEncoder):
    model_class = "Qwen3VLTextModel"
    small = {**SMALL, **rotary(2, 1, 1)}


TEXT_ENCODERS.table(
    globals(),
    {
        "Qwen25VLSmall": row(
            Qwen25VL,
            "qwen2.5-vl-3b",
            title="Text tower of Qwen2.5-VL-3B, 2048-d",
            licence="Qwen Research",
            hub="Qwen/Qwen2.5-VL-3B-Instruct",
            spec=TextSpec(embed_dim=2048, max_tokens=300),
            published=decoder(2048, 11008, layers=36, heads=16, groups=2, vocab=151936) | rotary(16, 24, 24),
        ),
        "Qwen25VLMedium": row(
            Qwen25VL,
            "qwen2.5-vl-7b",
            title="Text tower of Qwen2.5-VL-7B as Qwen-Image ships it, 3584-d",
            licence="Apache-2.0",
            hub="Qwen/Qwen-Image:text_encoder",
            spec=TextSpec(embed_dim=3584, max_tokens=300),
            published=decoder(3584, 18944, layers=28, heads=28, groups=4, vocab=152064) | rotary(16, 24, 24),
        ),
        "Qwen3VLSmall": row(
            Qwen3VL,
            "qwen3-vl-2b",
            title="Text tower of Qwen3-VL-2B, 2048-d",
            licence="Apache-2.0",
            hub="Qwen/Qwen3-VL-2B-Instruct",
            spec=TextSpec(embed_dim=2048, max_tokens=300),
            published=decoder(2048, 6144, layers=28, heads=16, groups=8, head_dim=128, vocab=151936)
            | rotary(24, 20, 20),
        ),
        "Qwen3VLMedium": row(
            Qwen3VL,
            "qwen3-vl-4b",
            title="Text tower of Qwen3-VL-4B, 2560-d",
            licence="Apache-2.0",
            hub="Qwen/Qwen3-VL-4B-Instruct",
            spec=TextSpec(embed_dim=2560, max_tokens=300),
            published=decoder(2560, 9728, layers=36, heads=32, groups=8, head_dim=128, vocab=151936)
            | rotary(24, 20, 20),
        ),
    },
)


@TEXT_ENCODERS.register(
    "mistral-small-3.2",
    title="Text tower of Mistral Small 3.2 as FLUX.2 ships it, 5120-d; gated",
    licence="see repository",
)
class MistralSmall(HubEncoder):
    hub = "black-forest-labs/FLUX.2-dev:text_encoder"
    model_class = "MistralModel"
    marks = ("<bos>", "")
    spec = TextSpec(embed_dim=5120, max_tokens=300)
    published = decoder(5120, 32768, layers=40, heads=32, groups=8, head_dim=128, vocab=131072)
    small = SMALL
