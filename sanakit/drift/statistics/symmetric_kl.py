"""Symmetric Gaussian KL (half of both directions, full covariance, shrunk), minus its permutation null."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, tested_reading
from sanakit.drift.permutation import permutation_test, thin
from sanakit.drift.statistics.gaussian_kl_full import MOST_ROWS, labelled_kl, refuse_few


@DRIFT.register("symmetric-kl", title="symmetric Gaussian KL, minus its permutation null", embedded=True)
def symmetric_kl(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """value in nats. Raises SK0703 with fewer than 10 rows a dimension."""
    refuse_few(reference, current)
    reference, current = thin(reference, MOST_ROWS, seed), thin(current, MOST_ROWS, seed)
    tested = permutation_test(partial(labelled_kl, symmetric=True), reference, current, seed)
    value = tested.value - tested.null.mean()
    return tested_reading("symmetric Gaussian KL, bias-corrected", value, tested.p_value, alpha)
