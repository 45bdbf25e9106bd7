"""The drift registry: a statistic is a pure function of two matrices, one row a picture or prompt.

Signature `(reference (n, d), current (m, d), alpha, *, names=(), seed=0) -> Reading`; `names` says what the columns
are, so that a reading can say where. The p-value is the test: `alarm` is `p_value <= alpha`.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sanakit.contracts import Reading
from sanakit.registry import Registry


class Statistic(Protocol):
    def __call__(
        self, reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
    ) -> Reading: ...


DRIFT: Registry[Statistic] = Registry("drift", "sanakit.drift")


def latent_features(latents: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, 2C): channel means and log standard deviations of every picture."""
    mean = latents.mean((2, 3))
    std = latents.std((2, 3), unbiased=False) if latents[0, 0].numel() > 1 else torch.ones_like(mean)
    return torch.cat([mean, std.clamp_min(1e-6).log()], 1)


def column_name(names: Sequence[str], column: int, columns: int) -> str:
    """The name of a column; without names the layout of `latent_features` is meant."""
    if names:
        return names[column]
    half = columns // 2
    return f"channel {column % half} {'mean' if column < half else 'spread'}" if half else "channel 0 mean"


def judged(
    name: str,
    title: str,
    value: float,
    p_value: float,
    alpha: float,
    *,
    where: str = "",
    ci_low: float | None = None,
    ci_high: float | None = None,
) -> Reading:
    """A reading whose p-value decides: threshold is alpha."""
    return Reading(
        name=name,
        title=title,
        value=float(value),
        where=where,
        ci_low=ci_low,
        ci_high=ci_high,
        p_value=float(p_value),
        threshold=alpha,
        alarm=bool(p_value <= alpha),
    )
