"""Maximum mean discrepancy (Gretton et al. 2012) with a mean of Gaussian kernels of several bandwidths.

Bandwidths are multiples of the pooled median distance; a mean of characteristic kernels is one.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import pdist, squareform

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, tested_reading
from sanakit.drift.permutation import permutation_test, thin

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0)
MOST_ROWS = 1024


def kernel(pooled: np.ndarray) -> np.ndarray:
    """(N, N) mean of exp(-d^2 / (2 s^2)) over s = multiples of the median distance."""
    distances = pdist(pooled)
    median = np.median(distances) or 1.0
    values = np.mean([np.exp(-((distances / (s * median)) ** 2) / 2) for s in BANDWIDTHS], 0)
    return squareform(values.astype(np.float32)) + np.eye(len(pooled), dtype=np.float32)


def labelled_mean_difference(matrix: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(B,): w^T K w with w = 1/m on current and -1/n on reference rows: the biased squared MMD for a kernel K."""
    count = labels.sum(1, keepdims=True)
    weights = labels / count - (1 - labels) / (labels.shape[1] - count)
    return ((weights @ matrix) * weights).sum(1, dtype=np.float64)


@DRIFT.register("mmd", title="MMD over four bandwidths", embedded=True)
def mmd(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """value: squared MMD minus its permutation null; at most 2."""
    reference, current = thin(reference, MOST_ROWS, seed), thin(current, MOST_ROWS, seed)
    matrix = kernel(np.concatenate([reference, current]))
    tested = permutation_test(lambda _, labels: labelled_mean_difference(matrix, labels), reference, current, seed)
    return tested_reading("squared MMD, bias-corrected", tested.value - tested.null.mean(), tested.p_value, alpha)
