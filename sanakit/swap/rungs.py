"""Where a race evaluates its arms, and how many of them go on from there."""

import math
from collections.abc import Sequence

import numpy as np

KEEP_AT_LEAST = 2
EVALUATED_STEPS = (
    75,
    150,
    300,
)  # steps that are evaluated for the study of forecasts; no decision of a race reads them


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
