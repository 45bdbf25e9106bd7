"""Where a race evaluates its arms, where it may end, and how many of them go on from there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

KEEP_AT_LEAST = 2
AUTO = 50  # steps of a race whose length is `auto`, doubled while it cannot tell
HALVING = 100  # the budget whose rungs choose learning rates and strategies in an `auto` race
EVALUATED_STEPS = (
    75,
    150,
    300,
)  # steps that are evaluated for the study of forecasts; no decision of a race reads them


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """The steps of one race. halving: the budget whose rungs choose rates and strategies. ends: where the race may
    end, in order; the last one is where it ends in any case."""

    halving: int
    ends: tuple[int, ...]

    @property
    def last(self) -> int:
        return self.ends[-1]

    def next_end(self, step: int) -> int:
        """The first end that is not before a step."""
        return next((end for end in self.ends if end >= step), self.last)

    @property
    def steps(self) -> list[int]:
        """Every step at which arms are evaluated and compared."""
        return sorted({*rungs(self.halving), *self.ends})

    @property
    def rates_at(self) -> int:
        """Where an arm's learning rate is chosen."""
        return decides_at(self.halving)


def fixed_rungs(budget: int) -> Rungs:
    """Of a race of exactly so many steps."""
    return Rungs(halving=budget, ends=(budget,))


def auto_rungs(max_steps: int) -> Rungs:
    """Of a race that ends when it can tell: after AUTO steps, twice as many, and so on, at the latest after
    max_steps. Its first HALVING steps are those of a race of HALVING steps."""
    ends = [AUTO]
    while 2 * ends[-1] <= max_steps:
        ends.append(2 * ends[-1])
    return Rungs(
        halving=min(HALVING, max_steps), ends=tuple(sorted({min(end, max_steps) for end in [*ends, max_steps]}))
    )


def rungs_of(race: int | Rungs) -> Rungs:
    """A race of exactly so many steps, or as it is."""
    return race if isinstance(race, Rungs) else fixed_rungs(race)


def decides_at(budget: int) -> int:
    """The rung at which an arm's learning rate is chosen."""
    return max(1, budget // 2)


def evaluated_steps_between(last: int, until: int) -> list[int]:
    """The EVALUATED_STEPS after step `last` and before step `until`."""
    return [step for step in EVALUATED_STEPS if last < step < until]


def rungs(budget: int) -> list[int]:
    """Where arms are evaluated: 1/8, 1/4, 1/2 and all of the budget."""
    return sorted({max(1, budget // 8), max(1, budget // 4), max(1, budget // 2), budget})


def survivors(errors: Sequence[np.ndarray], rung: int, budget: int) -> int:
    """How many of the arms that reached a rung go on; errors: (N,) of every arm, best first. Nobody is dropped for
    noise: who is not clearly worse than the last survivor, image by image, goes on too."""
    running = len(errors)
    if rung == max(1, budget // 4):
        keep = max(KEEP_AT_LEAST, math.ceil(running / 2))
    elif rung == max(1, budget // 2):
        keep = KEEP_AT_LEAST
    else:
        return running
    while keep < running:
        if is_clearly_worse(errors[keep], errors[keep - 1]):
            break
        keep += 1
    return min(keep, running)


def is_clearly_worse(errors: np.ndarray, others: np.ndarray) -> bool:
    """Whether errors exceed those of another arm on the same images by more than twice the standard error. (N,) each"""
    behind = errors - others
    return bool(behind.mean() > 2 * behind.std() / len(behind) ** 0.5)
