"""How many steps until a strategy reaches the base's quality, with an interval, and which strategy reaches it cheapest.

Both read the same draws of the law in slope_law.py, each draw of all strategies together. A forecast is their median
and their INTERVAL; the answer of a race is the strategy that is within a tenth of the cheapest in most draws, or that
none arrives within the horizon, with the share of draws in which that is right.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

INTERVAL = 0.8
CHEAPEST = 1.1  # times the cheapest strategy's cost: what counts as the right answer
TELLS = 0.7  # a race of automatic length ends when its answer is right with this probability

Draws = Mapping[str, np.ndarray]  # by strategy, steps to the target, infinite where it never arrives (D,)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Steps to the base's quality: the median and the ends of the INTERVAL, infinite beyond the horizon. within:
    probability of arriving within the horizon, in steps. reached: it is there at its last evaluation."""

    steps: float
    low: float
    high: float
    reached: bool
    within: float
    horizon: int

    def as_dict(self) -> dict[str, float | None]:
        def finite(value: float) -> float | None:
            return float(value) if np.isfinite(value) else None

        return {
            "predicted_steps": finite(self.steps),
            "predicted_steps_low": finite(self.low),
            "predicted_steps_high": finite(self.high),
            "interval": INTERVAL,
            "probability_within_horizon": round(self.within, 4),
        }


NOTHING: dict[str, float | None] = dict.fromkeys(
    (
        "predicted_steps",
        "predicted_steps_low",
        "predicted_steps_high",
        "interval",
        "probability_within_horizon",
    )
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a race says. name: the strategy that is recommended. in_sight: it is expected within the horizon; where
    not, it is the one with the lowest error. probability: that this is right."""

    name: str
    in_sight: bool
    probability: float

    @property
    def told(self) -> bool:
        return self.probability >= TELLS


def forecast_from(draws: np.ndarray, horizon: int, *, reached: bool) -> Forecast:
    """A strategy's draws as median and interval. draws: (D,)"""
    edge = (1 - INTERVAL) / 2
    low, median, high = (float(q) for q in np.quantile(draws, (edge, 0.5, 1 - edge), method="inverted_cdf"))

    def sight(value: float) -> float:
        return value if value <= horizon else float("inf")

    early = min(low, float(horizon)) if np.isfinite(draws).any() else float("inf")
    within = float(np.mean(draws <= horizon))
    return Forecast(steps=sight(median), low=early, high=sight(high), reached=reached, within=within, horizon=horizon)


def answer_of(
    draws: Draws,
    cost: Callable[[str, np.ndarray], np.ndarray],
    finalists: Sequence[str],
    *,
    horizon: int,
    step: float,
) -> Answer:
    """The answer from the draws of every strategy that raced, made together.

    finalists: who can be recommended, those that train least first: ties go to them; of equal standing in "not in
    sight", the first as well, so it is the caller's choice. cost: of so many steps (D,) of a strategy. step: cost of
    one step of the slowest: two costs that differ by less are alike.
    """
    costs = {name: np.where(steps <= horizon, cost(name, steps), np.inf) for name, steps in draws.items()}
    cheapest = np.min(list(costs.values()), axis=0)
    arrives = np.isfinite(np.min([costs[name] for name in finalists], axis=0))
    if arrives.mean() < 0.5:
        return Answer(name="", in_sight=False, probability=float(np.mean(~np.isfinite(cheapest))))
    near = {
        name: float(np.mean(np.isfinite(costs[name]) & (costs[name] + step <= CHEAPEST * (cheapest + step))))
        for name in finalists
    }
    best = max(finalists, key=lambda name: near[name])
    return Answer(name=best, in_sight=True, probability=near[best])


def steps_that_tell(forecasted: Forecast, steps: int) -> int:
    """Steps of a race that would tell whether a strategy arrives: the late end of its interval; with an open end
    twice the forecast; where nothing is in sight twice the steps of this race."""
    ends = [value for value in (forecasted.high, 2 * forecasted.steps) if np.isfinite(value) and value > steps]
    return int(np.ceil(ends[0])) if ends else 2 * steps
