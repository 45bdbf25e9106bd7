"""How many steps until a strategy reaches the base's quality, with an interval.

Law: one-step error falls as a power of steps, log e(s) = a - b log(s + 1): the usual shape of a learning curve once
the swapped joints have settled. Fitted to the later half of the evaluated points. The interval comes from refitting
on bootstrap resamples of the held-out pictures (paired with the base's errors on the same pictures), so it carries
the noise of the evaluation, not the error of the law itself.
"""

from dataclasses import dataclass

import numpy as np

from sanakit.swap.quality import Target

RESAMPLES = 200
HORIZON = 20  # budgets: a law fitted to a short race says nothing of steps further out


@dataclass(frozen=True)
class Forecast:
    """Steps to the base's quality; infinite when the curve does not get there within HORIZON budgets."""

    steps: float
    low: float
    high: float
    reached: bool

    def as_dict(self) -> dict[str, float | None]:
        finite = lambda value: float(value) if np.isfinite(value) else None
        return {
            "predicted_steps": finite(self.steps),
            "predicted_steps_low": finite(self.low),
            "predicted_steps_high": finite(self.high),
        }


def forecast(steps: list[int], errors: np.ndarray, target: Target, *, seed: int = 0) -> Forecast:
    """steps (K), relative errors (K, N) of held-out pictures at those steps."""
    generator = np.random.default_rng(seed)
    count = errors.shape[1]
    point = steps_to_reach(steps, errors.mean(1), target.tolerance * target.base.mean())
    draws = []
    for _ in range(RESAMPLES):
        rows = generator.integers(count, size=count)
        draws.append(steps_to_reach(steps, errors[:, rows].mean(1), target.tolerance * target.base[rows].mean()))
    low, high = np.quantile(draws, [0.05, 0.95], method="nearest")
    reached = bool(errors[-1].mean() <= target.tolerance * target.base.mean())
    return Forecast(point, float(low), float(high), reached)


def steps_to_reach(steps: list[int], curve: np.ndarray, target: float) -> float:
    """First step at which the curve is at `target`: measured if it was, else by the fitted law."""
    for step, value in zip(steps, curve, strict=True):
        if value <= target:
            return float(step)
    later = max(2, (len(steps) + 1) // 2)
    x, y = np.log(np.asarray(steps[-later:]) + 1.0), np.log(curve[-later:])
    if len(steps) < 2 or np.ptp(x) == 0:
        return float("inf")
    slope, intercept = np.polyfit(x, y, 1)
    if slope >= 0:
        return float("inf")
    exponent = (np.log(target) - intercept) / slope
    return float(np.exp(exponent) - 1) if exponent < np.log(HORIZON * steps[-1]) else float("inf")
