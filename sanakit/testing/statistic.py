"""The contract of a drift statistic: its reading, determinism, false alarms on clean sides and a planted shift."""

import inspect
from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, EVERYTHING, Seen, accepted, plain_reading
from sanakit.drift.compare import columns_of, project
from sanakit.drift.sample import Sample, sample_embeddings, sample_latents
from sanakit.testing.contract import require, resolve

Planted = Callable[[Tensor], Tensor]
UNLIKELY = 1e-3  # probability of more clean alarms than are tolerated, of a statistic that keeps alpha
TENSORS = {"latents": (4, 8, 8), "embeddings": (6, 8)}


def check_statistic(
    statistic: str | Callable[..., Any],
    *,
    alpha: float = 0.05,
    rows: int = 128,
    draws: int = 20,
    planted: Planted | None = None,
    seed: int = 0,
) -> None:
    """A registered name or a statistic keeps its contract for every kind that it sees.

    rows: of either side. draws: clean pairs of sides, on which it alarms no more often than alpha allows. planted: what
    drift is, from values (N, 4, 8, 8) or (N, 6, 8) to values of the same shape, on which it must alarm; by default all
    is moved, widened, correlated and smoothed. Raises SK0115.
    """
    item, name = resolve(statistic, DRIFT)
    _check_signature(item, name)
    seen = getattr(item, "seen", EVERYTHING)
    fix = "Name a kind in @sees(latents=..., embeddings=...)."
    require(bool(seen.blocks), name, "it sees no kind of values", fix)
    for kind in seen.blocks:
        side = _Sides(kind, rows, seed)
        reading = _check_reading(item, name, seen, side.clean(0), alpha, seed)
        if reading.p_value is not None:
            _check_false_alarms(item, name, seen, side, alpha, draws)
        changed = side.moved(planted or plant)
        moved = _ask(item, name, seen, changed, alpha, seed)
        found = (
            f"a planted drift of {kind} gives value {moved.value:.4g}, p {moved.p_value}, threshold {moved.threshold}"
        )
        fix = "Give `planted=` the drift that it is made for; or it does not measure what it says."
        require(moved.alarm, name, f"{found} and no alarm", fix)


def plant(values: Tensor) -> Tensor:
    """Everything at once: neighbours are averaged, channels are mixed, values are widened and moved."""
    smooth = (values + values.roll(1, -1)) / 2 if values.ndim == 4 else values
    axis = 1 if values.ndim == 4 else -1
    return 3 * (smooth + 0.7 * smooth.roll(1, axis)) + 2


class _Sides:
    """Pairs of sides of seeded noise, by kind."""

    def __init__(self, kind: str, rows: int, seed: int) -> None:
        self.kind, self.rows, self.seed = kind, rows, seed

    def _values(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        return torch.randn(self.rows, *TENSORS[self.kind], generator=generator)

    def _sample(self, values: Tensor) -> Sample:
        if self.kind == "latents":
            return sample_latents(values)
        return sample_embeddings(values, torch.ones(values.shape[:2], dtype=torch.bool))

    def clean(self, number: int) -> tuple[Sample, Sample]:
        return self._sample(self._values(2 * number)), self._sample(self._values(2 * number + 1))

    def moved(self, planted: Planted) -> tuple[Sample, Sample]:
        return self._sample(self._values(0)), self._sample(planted(self._values(1)))


def _check_signature(statistic: Any, name: str) -> None:
    fix = "Define it as (reference, current, alpha) -> Reading, optionally with the keywords names and seed."
    require(callable(statistic), name, f"a {type(statistic).__name__}, expected a function", fix)
    try:
        inspect.signature(statistic).bind(None, None, 0.05, **accepted(statistic, names=(), seed=0))
    except TypeError as error:
        found = f"its signature is {inspect.signature(statistic)}: {error}"
        require(False, name, found, fix)


def _ask(statistic: Any, name: str, seen: Seen, sides: tuple[Sample, Sample], alpha: float, seed: int) -> Reading:
    first, second, names = columns_of(seen, *sides, project(*sides))
    kept = first.copy(), second.copy()
    returned = statistic(first, second, alpha, **accepted(statistic, names=names, seed=seed))
    unchanged = np.array_equal(kept[0], first) and np.array_equal(kept[1], second)
    require(unchanged, name, "it changes the rows that it is given", "Work on a copy: other statistics read them too.")
    try:
        return plain_reading(name, returned)
    except (TypeError, ValueError) as error:
        require(False, name, str(error), "Return Reading(name=..., title=..., value=..., p_value=..., alarm=...).")
        raise


def _check_reading(
    statistic: Any, name: str, seen: Seen, sides: tuple[Sample, Sample], alpha: float, seed: int
) -> Reading:
    reading, again = (_ask(statistic, name, seen, sides, alpha, seed) for _ in range(2))
    fix = "Draw with numpy.random.default_rng(seed), where `seed` is a keyword of the function."
    require(reading == again, name, "two readings of the same sides differ", fix)
    require(isfinite(reading.value), name, f"value is {reading.value} on clean sides", "Give a finite number.")
    if getattr(statistic, "name", ""):
        fix = f"Name it {name!r}, or leave it ''."
        require(reading.name == name, name, f"the reading is named {reading.name!r}", fix)
    require(bool(reading.title), name, "the reading has no title", "title= says what `value` is.")
    if reading.p_value is not None:
        right = reading.alarm == (reading.p_value <= alpha)
        found = f"p {reading.p_value:.4g} at alpha {alpha:g} with alarm {reading.alarm}"
        require(right, name, found, "alarm is p_value <= alpha.")
        limit = reading.threshold
        require(limit == alpha, name, f"threshold is {limit}, expected alpha {alpha:g}", "threshold=alpha.")
    return reading


def _check_false_alarms(statistic: Any, name: str, seen: Seen, side: _Sides, alpha: float, draws: int) -> None:
    alarms = sum(_ask(statistic, name, seen, side.clean(number), alpha, number).alarm for number in range(draws))
    allowed = int(binom.isf(UNLIKELY, draws, alpha))
    found = f"{alarms} of {draws} clean pairs of {side.kind} alarm at alpha {alpha:g}, expected at most {allowed}"
    fix = "Take the p-value from permutations of the rows; a formula's assumptions do not hold here."
    require(alarms <= allowed, name, found, fix)
