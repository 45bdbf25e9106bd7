"""Gemma: Sana's own text encoder (Gemma-2-2b-it) and its successors, decoder-only.

Sana (arXiv 2410.10629, 3.1; diffusers, pipelines/sana/pipeline_sana.py) lower-cases prompts, puts an instruction before
them, takes the decoder's last hidden state, pads right, and keeps token 0 and the last 299: the instruction is read,
then dropped. Its null prompt has no instruction.
"""

import inspect
from typing import ClassVar

from diffusers import SanaPipeline

from sanakit.contracts import TextSpec
from sanakit.text_encoders.base import TEXT_ENCODERS
from sanakit.text_encoders.decoder import SMALL, decoder
from sanakit.text_encoders.transformer import HubEncoder

INSTRUCTION = "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)


def sana_spec(embed_dim: int) -> TextSpec:
    """How SanaPipeline reads prompts."""
    return TextSpec(embed_dim=embed_dim, max_tokens=300, instruction=INSTRUCTION, select="first-last", lower_case=True)


class Gemma(HubEncoder):
    marks = ("<bos>", "")
    small = SMALL


class Gemma2(Gemma):
    model_class = "Gemma2Model"
    spec = sana_spec(2304)
    published = decoder(2304, 9216, layers=26, heads=8, groups=4, head_dim=256, vocab=256000)
    small = {**SMALL, "query_pre_attn_scalar": 8}


@TEXT_ENCODERS.register("gemma-2-2b-it", title="Gemma-2-2b-it, Sana's own, 2304-d", licence="Gemma")
class Gemma2It(Gemma2):
    """A mirror by Sana's authors; google/gemma-2-2b-it is gated."""

    hub = "Efficient-Large-Model/gemma-2-2b-it"


@TEXT_ENCODERS.register("gemma-2-2b", title="Gemma-2-2b before instruction tuning, 2304-d; gated", licence="Gemma")
class Gemma2Base(Gemma2):
    hub = "google/gemma-2-2b"


class Gemma3(Gemma):
    model_class = "Gemma3TextModel"


@TEXT_ENCODERS.register("gemma-3-270m", title="Gemma-3-270M, 640-d; gated", licence="Gemma")
class Gemma3Tiny(Gemma3):
    hub: ClassVar[str | None] = "google/gemma-3-270m"
    spec = TextSpec(embed_dim=640, max_tokens=300)
    published = decoder(640, 2048, layers=18, heads=4, groups=1, head_dim=256, vocab=262144)


@TEXT_ENCODERS.register("gemma-3-1b-it", title="Gemma-3-1b-it, 1152-d; gated", licence="Gemma")
class Gemma3Small(Gemma3):
    hub = "google/gemma-3-1b-it"
    spec = sana_spec(1152)
    published = decoder(1152, 6912, layers=26, heads=4, groups=1, head_dim=256, vocab=262144)


@TEXT_ENCODERS.register("gemma-3-4b-it", title="Gemma-3-4b-it, its language model, 2560-d; gated", licence="Gemma")
class Gemma3Medium(Gemma3):
    hub = "google/gemma-3-4b-it"
    spec = sana_spec(2560)
    published = decoder(2560, 10240, layers=34, heads=8, groups=4, head_dim=256, vocab=262208)
