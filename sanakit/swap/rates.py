"""Which learning rates an arm of a race tries, and which of them it keeps.

Rates are tried from the highest to the lowest, so that the highest is the first to show whether it diverges, and are
evaluated at half the budget: the best rate moves while a run goes on (docs/strategies.md). One that is clearly worse
than a higher one at a quarter already leaves there. On a grid the search goes on while the best rate is at an end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sanakit.config import Config
from sanakit.strategies.base import Strategy
from sanakit.swap.rungs import is_clearly_worse

MULTIPLES = (2.0, 1.0, 0.25)  # of the strategy's own rate, which was measured on embedded cores
GRID = (2e-3, 6.93e-4, 2.4e-4, 8.33e-5, 2.89e-5, 1e-5)  # of any other core: even in the logarithm
BEYOND = 3  # rates that are tried beyond an end of the grid, at most


@dataclass(kw_only=True)
class RateSearch:
    """Hands out the learning rates of one arm, and remembers how they did.

    rates: absolute. goes_on: beyond the ends, at the ratio of two neighbours, while the best rate is at an end.
    errors: relative error by rate where rates are evaluated, infinite for one that diverged or left. left: why a rate
    left. early: (N,) errors at a quarter of the budget.
    """

    rates: Sequence[float]
    goes_on: bool = False
    errors: dict[float, float] = field(default_factory=dict)
    left: dict[float, str] = field(default_factory=dict)
    early: dict[float, np.ndarray] = field(default_factory=dict)

    @property
    def is_choice(self) -> bool:
        return len(self.rates) > 1

    def next_rate(self) -> float | None:
        """The rate to try now; None when the search is over."""
        for rate in sorted(self.rates, reverse=True):
            if rate not in self.errors:
                return rate
        if not (self.goes_on and self.is_choice and np.isfinite(self.errors[self.best])):
            return None
        tried = sorted(self.errors)
        low, high = min(self.rates), max(self.rates)
        ratio = (high / low) ** (1 / (len(self.rates) - 1))
        if self.best == tried[-1] and self.best < high * ratio ** (BEYOND - 0.5):
            return float(f"{self.best * ratio:.3g}")
        if self.best == tried[0] and self.best > low / ratio ** (BEYOND - 0.5):
            return float(f"{self.best / ratio:.3g}")
        return None

    @property
    def best(self) -> float:
        """The rate of the lowest error, the lowest rate where all are infinite."""
        return min(sorted(self.errors), key=lambda rate: self.errors[rate])

    def leaves_early(self, rate: float, errors: np.ndarray, step: int) -> bool:
        """Whether a rate leaves at a quarter of the budget: it is clearly worse there than a higher one. errors:
        (N,)"""
        self.early[rate] = errors
        worse = [other for other in self.early if other > rate and is_clearly_worse(errors, self.early[other])]
        if worse:
            self.left[rate] = f"clearly worse than {max(worse):g} at step {step}"
        return bool(worse)

    def record(self, rate: float, error: float, diverged: str = "") -> bool:
        """Take down the error of a rate, infinite where it diverged or left; whether it is the best so far."""
        self.errors[rate] = error
        if diverged and np.isinf(error):
            self.left[rate] = f"diverged: {diverged}"
        return self.best == rate

    def scores(self) -> dict[str, dict[str, object]]:
        """For strategy.json: the error of every rate, None for one that left, and why it left."""
        if not self.is_choice:
            return {"rates": {}, "rates_left": {}}
        known = {f"{r:g}": round(float(e), 4) if np.isfinite(e) else None for r, e in self.errors.items()}
        return {"rates": dict(known), "rates_left": {f"{rate:g}": why for rate, why in self.left.items()}}


def search_of(config: Config, strategy: type[Strategy], *, embedded: bool) -> RateSearch:
    """The search for a strategy: `train.learning_rate` alone, the multiples of `smoke.rates`, or by default MULTIPLES
    on an embedded core and GRID on any other. embedded: as the base's record says (`Base.embedded`)."""
    if config.train.learning_rate:
        return RateSearch(rates=(config.train.learning_rate,))
    multiples = config.smoke.rates or (MULTIPLES if embedded else None)
    if multiples is None:
        return RateSearch(rates=GRID, goes_on=True)
    return RateSearch(rates=[multiple * strategy.learning_rate for multiple in multiples])
