"""Optimisers by name: torch's AdamW, and two from well-kept packages that are imported only when they are asked for."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sanakit.errors import SanakitError


@dataclass(frozen=True, kw_only=True)
class Record:
    """bytes_a_parameter: of its state, for estimates (CAME's factored moments are left out: two rows a matrix)."""

    make: Callable[..., torch.optim.Optimizer]
    bytes_a_parameter: int
    sharded: bool = False  # whether it takes FSDP2's sharded parameters


def _adamw(groups: list[dict[str, Any]], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True)


def _adamw_8bit(groups: list[dict[str, Any]], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Block-wise 8-bit moments (arXiv 2110.02861); tensors under 4,096 numbers keep theirs in fp32."""
    package = _package("bitsandbytes", "adamw-8bit")
    return package.optim.AdamW8bit(groups, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))


def _came(groups: list[dict[str, Any]], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Confidence-guided factored moments (arXiv 2307.02047), what Sana was trained with."""
    return _package("pytorch_optimizer", "came").CAME(groups, lr=lr, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Record] = {
    "adamw": Record(make=_adamw, bytes_a_parameter=8, sharded=True),
    "adamw-8bit": Record(make=_adamw_8bit, bytes_a_parameter=2),
    "came": Record(make=_came, bytes_a_parameter=4),
}


def _package(name: str, asked: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        distribution = name.replace("_", "-")
        raise SanakitError(
            "SK0901",
            f"train.optimizer {asked} needs the package {distribution}",
            fix=f"pip install {distribution}, or 'sanakit[optimizers]'.",
        ) from error
