"""The drift registry: a statistic is a pure function of two matrices, one row per image or prompt.

    @DRIFT.register("spread-ratio", title="largest ratio of spreads")
    @sees(latents=("log-sd",))
    def spread_ratio(reference, current, alpha): ...

`sees` says which features its columns are; without it they are principal components of all features. Signature
`(reference (n, d), current (m, d), alpha, *, names=(), seed=0) -> Reading`; `names` says what the columns are, so that
a reading can say where. A statistic may leave out either keyword. The p-value is the test:
`alarm` is `p_value <= alpha`.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from sanakit.contracts import Reading
from sanakit.drift.features import BLOCKS
from sanakit.registry import Registry
from sanakit.tracebacks import guarded


class Statistic(Protocol):
    def __call__(
        self, reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
    ) -> Reading: ...


DRIFT: Registry[Statistic] = Registry("drift")
COMPONENTS = ("principal components",)  # of the normal scores of all structured features and correlations
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the columns of a statistic are, by kind: names of blocks, or COMPONENTS; a kind that is not there is not
    asked about. rows_named: its column names are those of the current side's rows."""

    blocks: dict[str, tuple[str, ...]]
    rows_named: bool = False


EVERYTHING = Seen(blocks=dict.fromkeys(BLOCKS, COMPONENTS))


def sees(*, rows_named: bool = False, **blocks: tuple[str, ...]) -> Callable[[F], F]:
    """Decorator of a statistic: the blocks of `sanakit.drift.features` that it reads of `latents`, of `embeddings`, or
    of both. Raises ValueError for another kind or block."""
    for kind, names in blocks.items():
        known = (*BLOCKS.get(kind, ()), *COMPONENTS)
        if kind not in BLOCKS or not set(names) <= set(known):
            raise ValueError(f"sees({kind}={names!r}): kinds and blocks are {BLOCKS}, or {COMPONENTS}")

    def mark(statistic: F) -> F:
        statistic.seen = Seen(blocks=blocks, rows_named=rows_named)  # type: ignore[attr-defined]
        return statistic

    return mark


def seen_by(name: str) -> Seen:
    """What a registered statistic sees; everything where it does not say, or cannot be imported."""
    statistic, _ = guarded(lambda: DRIFT.get(name))
    return getattr(statistic, "seen", EVERYTHING)


def ask(
    name: str, reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """A registered statistic's reading. One that raises, or that cannot be imported, gives a reading that has no value
    and says in `error` whose it is and what was raised."""

    def work() -> Reading:
        statistic = DRIFT.get(name)
        return plain_reading(name, statistic(reference, current, alpha, **accepted(statistic, names=names, seed=seed)))

    reading, error = guarded(work)
    if reading is not None:
        return reading
    assert error is not None
    said = DRIFT.blame(name, error)[1]
    return Reading(name=name, title="could not be evaluated", value=math.nan, where=said, error=said)


def accepted(statistic: Any, **options: Any) -> dict[str, Any]:
    """The keywords among these that the function takes."""
    parameters = inspect.signature(statistic).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return options
    taken = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    return {key: value for key, value in options.items() if key in taken}


def plain_reading(name: str, returned: Any) -> Reading:
    """The reading under the registered name, its numbers as Python's own. Raises where it is none, or where its p-value
    is no probability."""
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


def tested_reading(
    title: str,
    value: float,
    p_value: float,
    alpha: float,
    *,
    where: str = "",
    ci_low: float | None = None,
    ci_high: float | None = None,
) -> Reading:
    """A reading whose p-value decides: threshold is alpha. `ask` gives it the name that the statistic is registered
    under."""
    return Reading(
        name="",
        title=title,
        value=float(value),
        where=where,
        ci_low=ci_low,
        ci_high=ci_high,
        p_value=float(p_value),
        threshold=alpha,
        alarm=bool(p_value <= alpha),
    )
