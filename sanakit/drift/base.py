"""The drift registry: a statistic is a pure function of two matrices, one row per image or prompt.

Signature `(reference (n, d), current (m, d), alpha, *, names=(), seed=0) -> Reading`; `names` says what the columns
are, so that a reading can say where. A statistic may leave out either keyword. The p-value is the test: `alarm` is
`p_value <= alpha`.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sanakit.contracts import Reading
from sanakit.registry import Registry
from sanakit.tracebacks import guarded


class Statistic(Protocol):
    def __call__(
        self, reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
    ) -> Reading: ...


DRIFT: Registry[Statistic] = Registry("drift", "sanakit.drift.statistics")


def ask(
    name: str, reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """A registered statistic's reading. One that raises, or that cannot be imported, gives a reading that has no value
    and says in `error` whose it is and what was raised."""

    def work() -> Reading:
        statistic = DRIFT.get(name)
        return _checked(name, statistic(reference, current, alpha, **_accepted(statistic, names=names, seed=seed)))

    reading, error = guarded(work)
    if reading is not None:
        return reading
    assert error is not None
    said = DRIFT.blame(name, error)[1]
    return Reading(name=name, title="could not be evaluated", value=math.nan, where=said, error=said)


def _accepted(statistic: Any, **options: Any) -> dict[str, Any]:
    """The keywords among these that the function takes."""
    parameters = inspect.signature(statistic).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return options
    taken = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    return {key: value for key, value in options.items() if key in taken}


def _checked(name: str, returned: Any) -> Reading:
    """The reading with its numbers as Python's own. Raises where it is none, or where its p-value is no probability."""
    if not isinstance(returned, Reading):
        raise TypeError(f"the statistic returned {type(returned).__name__}, expected Reading")
    plain: dict[str, Any] = {
        key: None if getattr(returned, key) is None else float(getattr(returned, key))
        for key in ("value", "ci_low", "ci_high", "p_value", "threshold")
    }
    if plain["p_value"] is not None and not 0 <= plain["p_value"] <= 1:
        raise ValueError(f"the statistic returned p_value {plain['p_value']}, expected 0 to 1")
    return replace(returned, name=returned.name or name, alarm=bool(returned.alarm), **plain)


def latent_features(latents: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, 2C): channel means and log standard deviations of every image."""
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
