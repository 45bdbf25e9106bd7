"""What a metric is: a function of what a system drew (`Drawn`), and the facts that its scores carry.

    @METRICS.register("contrast", title="contrast of the samples")
    @metric(better="higher")
    def contrast(drawn: Drawn) -> Measured:
        return Measured(values=drawn.images.float().std((2, 3, 4)))

One value a sample is enough: its mean over prompts and seeds is the score, with a bootstrap interval over prompts. A
metric of a whole set gives a function of weights over the prompts instead.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sanakit.evaluation.drawing import Drawn
from sanakit.registry import Registry

SIDES = ("higher", "lower", "")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """values: (S, N), one a sample, seed by prompt. statistic: in place of values, the score for weights (N,) over the
    prompts, sum 1; equal weights give the score itself. features: name of what it was measured in. of_true_images: what
    the images that the prompts describe score. references: images that a distance was measured to. note: what a reader
    has to know."""

    values: Any = None
    statistic: Callable[[np.ndarray], float] | None = None
    features: str = ""
    of_true_images: float | None = None
    references: int | None = None
    note: str = ""

    def score(self, weights: np.ndarray) -> np.ndarray:
        """The score for each row of weights. (R, N) -> (R,)"""
        if self.statistic is None:
            return np.asarray(weights @ self.values.mean(0))
        return np.array([float(self.statistic(row)) for row in weights])


class Metric:
    """A measuring function with its facts. `name` and `title` are set by the registry. better: the good side; empty
    where neither is. every_features: it is evaluated in each of the named features, any other in the first. clip: it
    reads the CLIP model."""

    def __init__(self, measure: Callable[[Drawn], Any], better: str, every_features: bool, clip: bool) -> None:
        functools.update_wrapper(self, measure)
        self.measure, self.better, self.every_features, self.clip = measure, better, every_features, clip
        self.name = self.title = ""

    def __call__(self, drawn: Drawn) -> Measured:
        return checked(self.measure(drawn), drawn)


METRICS: Registry[Callable[[Drawn], Any]] = Registry("metrics")


def metric(
    *, better: str = "", every_features: bool = False, clip: bool = False
) -> Callable[[Callable[[Drawn], Any]], Metric]:
    """Decorator: the measuring function becomes a metric; the arguments are those of `Metric`. Raises ValueError for
    another side than higher and lower."""
    if better not in SIDES:
        raise ValueError(f"better is {better!r}, expected higher or lower")

    def decorate(measure: Callable[[Drawn], Any]) -> Metric:
        return Metric(measure, better, every_features, clip)

    return decorate


def checked(measured: Any, drawn: Drawn) -> Measured:
    """What a metric returned: a `Measured`, or values alone. Raises TypeError and ValueError that say what is wrong."""
    if not isinstance(measured, Measured):
        measured = Measured(values=measured)
    if (measured.values is None) == (measured.statistic is None):
        raise TypeError("the metric returned no values and no statistic, expected one of them")
    if measured.statistic is not None:
        return measured
    values = np.asarray(measured.values, dtype=np.float64)
    shape = (drawn.num_seeds, drawn.num_prompts)
    if values.shape != shape:
        raise ValueError(f"the metric returned values {values.shape}, expected one a sample, {shape}: seeds, prompts")
    return replace(measured, values=values)
