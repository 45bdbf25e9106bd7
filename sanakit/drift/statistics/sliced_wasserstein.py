"""Sliced Wasserstein-1 distance: the mean over random directions of the integral of |F_current - F_reference|."""

from collections.abc import Sequence

import numpy as np

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, tested_reading
from sanakit.drift.permutation import permutation_test, thin

DIRECTIONS = 32
MOST_ROWS = 1024


def labelled_wasserstein(projected: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """projected: (N, k). Each direction is sorted once; a labelling is then a cumulative sum along it."""
    count = labels.sum(1, keepdims=True)
    weights = (labels / count - (1 - labels) / (labels.shape[1] - count)).astype(np.float32)
    total = np.zeros(len(labels))
    for line in projected.T:
        order = np.argsort(line)
        total += np.abs(np.cumsum(weights[:, order], 1)[:, :-1]) @ np.diff(line[order])
    return total / projected.shape[1]


def directions(columns: int, seed: int) -> np.ndarray:
    """(d, k) unit vectors; with one column there is one direction."""
    drawn = np.random.default_rng(seed).normal(size=(columns, DIRECTIONS if columns > 1 else 1))
    return drawn / np.linalg.norm(drawn, axis=0)


@DRIFT.register("sliced-wasserstein", title="sliced Wasserstein distance", embedded=True)
def sliced_wasserstein(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """value in units of the columns, minus its permutation null."""
    basis = directions(reference.shape[1], seed)
    reference, current = (thin(rows, MOST_ROWS, seed) @ basis for rows in (reference, current))
    tested = permutation_test(labelled_wasserstein, reference, current, seed)
    value = tested.value - tested.null.mean()
    return tested_reading("sliced Wasserstein distance, bias-corrected", value, tested.p_value, alpha)
