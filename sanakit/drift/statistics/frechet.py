"""Frechet distance of two Gaussians, |m_c - m_r|^2 + tr(C_r + C_c - 2 (C_r C_c)^(1/2)), minus its permutation null.

On the columns given, which the caller has scaled; it is no FID: that is this formula on Inception features.
"""

from collections.abc import Sequence

import numpy as np

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, tested_reading
from sanakit.drift.permutation import permutation_test, thin
from sanakit.drift.statistics.gaussian_kl_full import CHUNK, MOST_ROWS, group_gaussians


def frechet_distance(mean_r: np.ndarray, cov_r: np.ndarray, mean_c: np.ndarray, cov_c: np.ndarray) -> np.ndarray:
    """Batched over the first axis. The trace of the square root by the eigenvalues of C_r^(1/2) C_c C_r^(1/2)."""
    values, vectors = np.linalg.eigh(cov_r)
    root = (vectors * np.sqrt(np.maximum(values, 0))[:, None]) @ vectors.transpose(0, 2, 1)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_c @ root), 0)).sum(-1)
    traces = np.trace(cov_r, axis1=1, axis2=2) + np.trace(cov_c, axis1=1, axis2=2)
    return ((mean_c - mean_r) ** 2).sum(-1) + traces - 2 * cross


def labelled_frechet(pooled: np.ndarray, labels: np.ndarray) -> np.ndarray:
    chunks = np.array_split(labels, max(1, len(labels) // CHUNK))
    return np.concatenate([frechet_distance(*group_gaussians(pooled.astype(np.float64), chunk)) for chunk in chunks])


@DRIFT.register("frechet", title="Frechet distance, minus its permutation null", embedded=True)
def frechet(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """value in squared units of the columns."""
    reference, current = thin(reference, MOST_ROWS, seed), thin(current, MOST_ROWS, seed)
    tested = permutation_test(labelled_frechet, reference, current, seed)
    return tested_reading("Frechet distance, bias-corrected", tested.value - tested.null.mean(), tested.p_value, alpha)
