"""Sentences of plan.json on what is not a parameter group: the base's mask, adapters, controls."""

from collections.abc import Sequence

import torch
from diffusers import SanaTransformer2DModel

from sanakit.adapters import ADAPTERS
from sanakit.assembly import LatentDiffusion
from sanakit.data.dataset import LatentDataset
from sanakit.evaluation.held_out import held_out
from sanakit.strategies.base import Strategy
from sanakit.text_encoders import PromptEmbeds


def mask_remark(base: LatentDiffusion, data: LatentDataset, *, count: int = 128) -> str:
    """What is said of a base that was trained without an attention mask: its held-out loss is lower, beyond twice the
    standard error, when it reads the padding too. Empty for one that was trained with it."""
    rows = torch.arange(min(count, len(data)))
    prompt = data.evaluation_prompts(rows)
    losses = []
    for mask in (prompt.mask, torch.ones_like(prompt.mask)):
        part = LatentDataset(
            names=data.names[: len(rows)],
            latents=data.latents[rows],
            captions=PromptEmbeds(prompt.embeds, mask),
            first=rows,
            count=torch.ones_like(rows),
        )
        losses.append(held_out(base, part, count=len(rows)).losses.mean(0))
    gain = losses[0] - losses[1]
    if gain.mean() <= 2 * gain.std() / len(rows) ** 0.5:
        return ""
    return (
        f"the base was trained without an attention mask: its held-out loss is {losses[0].mean():.4f} with the mask "
        f"and {losses[1].mean():.4f} without; sanakit masks padding, so the swap also has to learn that"
    )


def adapter_remark(strategy: type[Strategy], plain: SanaTransformer2DModel, joined: SanaTransformer2DModel) -> str:
    """What a strategy with an adapter costs and saves. plain, joined: the swapped core without and with the adapter."""
    sizes = [sum(p.numel() for p in core.parameters()) for core in (plain, joined)]
    saves = ADAPTERS.get(strategy.adapter).saves
    return (
        f"{strategy.name} puts {strategy.adapter} into the core, {sizes[1] - sizes[0]:,} parameters more: stock "
        "diffusers cannot load the result, export writes it for sanakit's own pipeline class; "
        f"{saves or 'what it saves was not measured'}"
    )


def controls_remark(resting: Sequence[str]) -> str:
    """Which controls do not race; empty where there is none."""
    if not resting:
        return ""
    return (
        f"not trained (--controls): {', '.join(resting)}; evaluated before any step, as smoke/alignment and "
        "smoke/progress compare with the start of naive"
    )
