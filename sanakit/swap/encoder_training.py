"""A text encoder that is trained with the core: which of its parameters move, its own learning rate, its own monitor.

Captions are encoded in the loop, dropped prompts as the empty prompt that sampling uses, so the null embedding is
recomputed every step and gets gradients like any other.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sanakit.assembly import LatentDiffusion, evaluating
from sanakit.data.dataset import LatentDataset
from sanakit.errors import SanakitError
from sanakit.interop.export import write_encoder
from sanakit.ranks.sharing import shared
from sanakit.text_encoders import PromptEmbeds, TextEncoder

CHUNK = 64
GROUP = "text_encoder"


def trainable_copy(encoder: TextEncoder, *, gradient_checkpointing: bool) -> TextEncoder:
    """A copy in fp32 without dropout whose used parameters require gradients; one that no prompt reaches stays frozen.

    Raises SK0104 where gradient checkpointing is asked of a model that has none.
    """
    encoder = deepcopy(encoder).float()
    encoder.kept_null = None  # it belongs to the encoder as it was
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            module.attention_dropout = 0.0
    encoder.requires_grad_(True)
    encoder(["a probe of what a prompt reaches", ""]).embeds.square().sum().backward()
    for parameter in encoder.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    if gradient_checkpointing:
        model: Any = encoder.model
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise SanakitError(
                "SK0104",
                f"text_encoder.gradient_checkpointing: {type(model).__name__} has none",
                fix="Set it to false.",
            )
        model.config.use_cache = False
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return encoder


def encoder_group(encoder: TextEncoder, learning_rate: float, core_rate: float) -> dict[str, Any]:
    """The optimiser group of the encoder; `scale` as of every group multiplies the core's learning rate."""
    trained = [p for p in encoder.parameters() if p.requires_grad]
    return {"params": trained, "scale": learning_rate / core_rate, "name": GROUP}


def as_encoded_now(system: LatentDiffusion, data: LatentDataset, count: int) -> LatentDataset:
    """The first `count` images with their captions, and the system's null embedding, as the encoder gives them now."""
    stop = int((data.first + data.count)[:count].max())
    with system.placement.holding(system.text_encoder), evaluating(system.text_encoder):
        system.null = system.text_encoder.null()
        return replace(data, captions=encoded(system.text_encoder, data.texts[:stop]))


def encoded(encoder: TextEncoder, texts: Sequence[str]) -> PromptEmbeds:
    """Embeddings of the texts; the ranks of a run share the batches."""

    def encode(starts: Sequence[int]) -> list[PromptEmbeds]:
        return [encoder.encode(list(texts[start : start + CHUNK])) for start in starts]

    parts = shared(range(0, len(texts), CHUNK), encode)
    return PromptEmbeds(torch.cat([p.embeds for p in parts]), torch.cat([p.mask for p in parts]))


def save_encoder(encoder: TextEncoder, folder: Path) -> str:
    """Write `folder/text`, and how a card beside it names the encoder."""
    write_encoder(encoder, folder / "text")
    return "path:./text/text_encoder"
