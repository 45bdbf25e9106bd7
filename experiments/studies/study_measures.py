"""Figures of forecasts and decisions, each with a bootstrap interval over swaps.

Coverage with censored runs: the share of a forecast's draws below the true steps is uniform where the forecast is
right. A strategy that was run for n steps in vain tells that its share is above that of n. The Kaplan-Meier estimate of
the distribution of shares takes both; coverage of the 80% interval is its value at .9 less its value at .1.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

RESAMPLES = 1000
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Forecasted:
    """One forecast and what became of it. share: of draws at most the true steps, or, where censored, at most the
    steps it was run in vain. score: of the 80% interval, None where censored."""

    swap: str
    share: float
    censored: bool
    score: float | None


def forecasted(swap: str, draws: np.ndarray, arrival: float | None, run_to: float, horizon: float) -> Forecasted:
    """arrival: true steps, None where it did not arrive until `run_to`."""
    if arrival is None:
        return Forecasted(swap=swap, share=float(np.mean(draws <= run_to)), censored=True, score=None)
    share = float(np.mean(draws < arrival) + np.mean(draws == arrival) / 2)
    return Forecasted(swap=swap, share=share, censored=False, score=interval_score(draws, arrival, horizon))


def interval_score(draws: np.ndarray, arrival: float, horizon: float, level: float = 0.8) -> float:
    """Of the interval in the logarithm of steps, cut at the horizon: its width and what a miss costs (Gneiting and
    Raftery 2007). Lower is better."""
    edge = (1 - level) / 2
    ends = np.quantile(draws, [edge, 1 - edge], method="inverted_cdf")
    low, high = np.log1p(np.minimum(ends, horizon))
    true = np.log1p(min(arrival, horizon))
    return float(high - low + 2 / (1 - level) * (max(low - true, 0) + max(true - high, 0)))


def coverage(forecasts: Sequence[Forecasted], level: float) -> float:
    """Censor-adjusted coverage of the central interval of a level; not a number where every run is censored, as
    nothing then tells where the shares end."""
    if all(one.censored for one in forecasts):
        return float("nan")
    edge = (1 - level) / 2
    low, high = kaplan_meier(forecasts, (edge, 1 - edge))
    return high - low


def kaplan_meier(forecasts: Sequence[Forecasted], levels: Sequence[float]) -> list[float]:
    """Estimated probability that a share is at most each level. Of equal shares the censored ones count as larger."""
    ordered = sorted((one.share, one.censored) for one in forecasts)
    shares = np.array([share for share, _ in ordered])
    at_risk = len(ordered) - np.arange(len(ordered))
    left = np.where([censored for _, censored in ordered], 1.0, 1 - 1 / at_risk)
    return [1 - float(np.prod(left[shares <= level])) for level in levels]


def brier(probabilities: Sequence[float], happened: Sequence[bool]) -> float:
    return float(np.mean((np.asarray(probabilities) - np.asarray(happened, float)) ** 2))


def always_base_rate(happened: Sequence[bool]) -> float:
    """Brier score of always saying how often it happens."""
    rate = float(np.mean(happened))
    return rate * (1 - rate)


def bootstrap(rows: Sequence[T], swap_of: Callable[[T], str], measure: Callable[[list[T]], float]) -> list[float]:
    """[5%, 95%] quantiles of a measure over resampled swaps, of those for which it is a number; rows of one swap go
    together."""
    by_swap: dict[str, list[T]] = defaultdict(list)
    for row in rows:
        by_swap[swap_of(row)].append(row)
    swaps, generator, values = sorted(by_swap), np.random.default_rng(SEED), []
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(swaps), size=len(swaps))
        sample = [row for i in drawn for row in by_swap[swaps[i]]]
        value = measure(sample)
        if np.isfinite(value):
            values.append(value)
    return [round(float(q), 3) for q in np.quantile(values, [0.05, 0.95])]
