"""How many steps until a strategy reaches the base's quality, with an interval.

Law: the relative error falls as a power of steps, log e(s) = a - b log(s + 1): the usual shape of a learning curve once
the swapped interface layers have settled, fitted to the later half of the evaluated points. Of the laws tried on the
decision study's curves (logarithmic, power over a floor, more or fewer points) it has the smallest median error. A
curve that rises at first (a warm-up, fresh layers) is fitted from its highest point on. One that does not fall from
there says nothing of when it will: its interval is open, from the end of the race, where it was not there yet, to no
end.

Interval: what a short race cannot know is the curve's slope, so a forecast errs in proportion to how far it reaches:
the logarithm of steps over the race's steps is off by a factor, STRETCH its 5% and 95% quantiles over the study's
curves (experiments/studies/decision_study.py summary; leaving a swap out covers it about as often as promised). The
evaluation's own noise, by refitting on bootstrap resamples of the held-out images, widens it where that is larger.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

RESAMPLES = 200
HORIZON = 20  # budgets: a law fitted to a short race says nothing of steps further out
STRETCH = (0.38, 3.57)
SHORTEST = 0.4  # log of steps over the race's: a target just out of reach may be further away than it seems


class Goal(Protocol):
    """base: (N,) relative errors of the base; tolerance: of their mean, what counts as reached."""

    @property
    def base(self) -> np.ndarray: ...

    @property
    def tolerance(self) -> float: ...


@dataclass(frozen=True)
class Forecast:
    """Steps to the base's quality; infinite when the curve does not get there within HORIZON budgets."""

    steps: float
    low: float
    high: float
    reached: bool

    @property
    def conclusive(self) -> bool:
        """Reached, or an interval with two ends: the race can tell. An open end means that a longer one is needed."""
        return self.reached or bool(np.isfinite(self.high))

    def as_dict(self) -> dict[str, float | None]:
        def finite(value: float) -> float | None:
            return float(value) if np.isfinite(value) else None

        return {
            "predicted_steps": finite(self.steps),
            "predicted_steps_low": finite(self.low),
            "predicted_steps_high": finite(self.high),
        }


def steps_that_tell(forecasted: Forecast, budget: int) -> int:
    """Steps of a race that would tell whether a strategy arrives: the late end of its interval; with an open end twice
    the forecast; where nothing is in sight twice the budget, which also doubles how far the law is trusted."""
    ends = [value for value in (forecasted.high, 2 * forecasted.steps) if np.isfinite(value) and value > budget]
    return int(np.ceil(ends[0])) if ends else 2 * budget


def forecast(steps: list[int], errors: np.ndarray, target: Goal, *, seed: int = 0) -> Forecast:
    """steps (K), relative errors (K, N) of held-out images at those steps."""
    generator = np.random.default_rng(seed)
    count, last = errors.shape[1], steps[-1]
    point = steps_to_reach(steps, errors.mean(1), target.tolerance * target.base.mean())
    draws = []
    for _ in range(RESAMPLES):
        rows = generator.integers(count, size=count)
        draws.append(steps_to_reach(steps, errors[:, rows].mean(1), target.tolerance * target.base[rows].mean()))
    low, high = (float(q) for q in np.quantile(draws, [0.05, 0.95], method="nearest"))
    if last > 0 and not np.isfinite(point):  # it trains: the race does not show that it never arrives, only not by now
        low = min(low, float(last))
    if point > last > 0:
        reach = np.log((point + 1) / (last + 1))
        low = min(low, (last + 1) * np.exp(STRETCH[0] * reach) - 1)
        high = max(high, (last + 1) * np.exp(STRETCH[1] * max(reach, SHORTEST)) - 1)
    reached = bool(errors[-1].mean() <= target.tolerance * target.base.mean())
    horizon = float(HORIZON * last) if last > 0 else float("inf")  # without a step there is nothing to extrapolate

    def sight(value: float) -> float:
        return float(value) if value <= horizon else float("inf")

    return Forecast(sight(point), min(float(low), horizon), sight(high), reached)


def steps_to_reach(steps: list[int], curve: np.ndarray, target: float) -> float:
    """First step at which the curve is at `target`: measured if it was, else by the law fitted to the later half of the
    points, none of them before the highest; infinite where that never is."""
    for step, value in zip(steps, curve, strict=True):
        if value <= target:
            return float(step)
    since_peak = len(steps) - int(np.argmax(curve))
    later = min(max(2, (len(steps) + 1) // 2), max(2, since_peak))
    x, y = np.log(np.asarray(steps[-later:]) + 1.0), np.log(curve[-later:])
    if len(steps) < 2 or np.ptp(x) == 0:
        return float("inf")
    slope, intercept = np.polyfit(x, y, 1)
    if slope >= 0:
        return float("inf")
    return float(np.exp(min((np.log(target) - intercept) / slope, 50.0)) - 1)
