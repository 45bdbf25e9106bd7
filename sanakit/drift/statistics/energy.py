"""Energy distance 2 E|X-Y| - E|X-X'| - E|Y-Y'| (Szekely and Rizzo 2013): no bandwidth to choose."""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import pdist, squareform

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, tested_reading
from sanakit.drift.permutation import permutation_test, thin
from sanakit.drift.statistics.mmd import MOST_ROWS, labelled_mean_difference


@DRIFT.register("energy", title="energy distance", embedded=True)
def energy(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """value in units of the columns, minus its permutation null."""
    reference, current = thin(reference, MOST_ROWS, seed), thin(current, MOST_ROWS, seed)
    negative = -squareform(pdist(np.concatenate([reference, current]))).astype(np.float32)
    tested = permutation_test(lambda _, labels: labelled_mean_difference(negative, labels), reference, current, seed)
    return tested_reading("energy distance, bias-corrected", tested.value - tested.null.mean(), tested.p_value, alpha)
