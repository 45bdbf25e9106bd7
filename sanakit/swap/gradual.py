"""Gradual training: blocks join from those nearest to the swapped part, over a share of the steps.

With the strategy `lora` the scope of the low-rank adapters grows (the gradual LoRA that DC-Gen, arXiv 2509.25180, was
asked to compare with); with `finetune` it is gradual unfreezing (arXiv 1801.06146, 3.3). What has not joined yet gets
no gradient, no moments and no decay, and its own warm-up when it joins: until then it is bit-equal to the start.

A VAE touches both ends of the core, so blocks join from the ends to the middle. Captions enter every block by its
cross-attention, which joins first; the rest of the blocks follows, the first block first.
"""

import re
from typing import Any

from torch import nn

from sanakit.core.dit import group_of
from sanakit.errors import SanakitError

BLOCK = "transformer_blocks."
SETTLED = 3  # steps that every block has at least: one half of a low-rank pair moves a step after the other


def join_gradually(
    core: nn.Module, groups: list[dict[str, Any]], *, kind: str, share: float, max_steps: int
) -> list[dict[str, Any]]:
    """Optimiser groups split by the step `joins` at which they begin to move; share 0: as they are. kind: "vae" or
    "text_encoder", what is swapped. Raises SK0104 where the groups hold no block."""
    if not share:
        return groups
    names = {id(p): name for name, p in core.named_parameters()}
    blocks = [name for group in groups for p in group["params"] if (name := names[id(p)]).startswith(BLOCK)]
    if not blocks:
        raise SanakitError(
            "SK0104", "train.gradual: the strategy trains no block of the core", fix="Use lora or finetune, or 0."
        )
    depth = len(core.transformer_blocks)  # type: ignore[arg-type]
    last = max(wave_of(name, kind, depth) for name in blocks)
    split: dict[tuple[int, int], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            wave = min(last, wave_of(names[id(parameter)], kind, depth))
            joins = min(round(share * max_steps * wave / max(1, last)), max(0, max_steps - SETTLED))
            joining = split.setdefault((number, joins), group | {"params": [], "joins": joins})
            joining["params"].append(parameter)
    return list(split.values())


def wave_of(name: str, kind: str, depth: int) -> int:
    """When a parameter joins, 0 first; what serves all blocks alike, as the time embedding does,
    joins with the last."""
    block = re.match(r"transformer_blocks\.(\d+)\.(\w+)", name)
    if block is None:
        return depth if group_of(name) == "core" else 0
    number = int(block[1])
    if kind == "vae":
        return min(number, depth - 1 - number)
    return 0 if block[2] == "attn2" else number + 1
