"""Optimisers by name: torch's AdamW, and two from well-kept packages that are imported only when they are asked for."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sanakit.errors import SanakitError


@dataclass(frozen=True, kw_only=True)
class Record:
    """bytes_a_parameter: of its state, for estimates (CAME's factored moments are left out: two rows a matrix).
    unsharded: why it cannot take FSDP2's sharded parameters; empty where it can."""

    make: Callable[..., torch.optim.Optimizer]
    bytes_a_parameter: int
    package: str = ""  # to import, where it is not torch's own
    unsharded: str = ""


def _adamw(groups: list[dict[str, Any]], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True)


def _adamw_8bit(groups: list[dict[str, Any]], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Block-wise 8-bit moments (arXiv 2110.02861); tensors under 4,096 numbers keep theirs in fp32."""
    require("adamw-8bit")
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))


def _came(groups: list[dict[str, Any]], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Confidence-guided factored moments (arXiv 2307.02047), what Sana was trained with."""
    require("came")
    from pytorch_optimizer import CAME

    return CAME(groups, lr=lr, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Record] = {
    "adamw": Record(make=_adamw, bytes_a_parameter=8),
    "adamw-8bit": Record(
        make=_adamw_8bit,
        bytes_a_parameter=2,
        package="bitsandbytes",
        unsharded="its kernels take no sharded tensors, and blocks of 256 numbers that share a scale would be cut",
    ),
    "came": Record(
        make=_came,
        bytes_a_parameter=4,
        package="pytorch_optimizer",
        unsharded="it keeps row and column means and a clipping norm of whole matrices in tensors that are not sharded",
    ),
}


def require(name: str) -> None:
    """Raises SK0901 where the optimiser's package is missing, before anything is computed."""
    package = OPTIMIZERS[name].package
    if package and importlib.util.find_spec(package) is None:
        distribution = package.replace("_", "-")
        raise SanakitError(
            "SK0901",
            f"train.optimizer {name} needs the package {distribution}",
            fix=f"pip install {distribution}, or 'sanakit[optimizers]'.",
        )
