"""Diagonal Gaussian KL(current || reference) over features, minus its permutation null.

The plug-in KL is biased upward (by about d/2 (1/n + 1/m) and more for full covariances); the mean over random
re-splits of the pooled images is that bias, and their upper tail gives p.
"""

from collections.abc import Sequence

import numpy as np

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, column_name, sees, tested_reading
from sanakit.drift.permutation import group_means, permutation_test


def columns_kl(pooled: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(B, d): log(s_r/s_c) + (s_c^2 + (m_c - m_r)^2) / (2 s_r^2) - 1/2 of every column, spreads floored.

    Columns are scaled by the pooled spread first, which changes nothing but the floor's meaning.
    """
    scaled = (pooled - pooled.mean(0)) / (pooled.std(0) + 1e-12)
    first, second = group_means(scaled, labels), group_means(scaled**2, labels)
    v_r, v_c = (np.maximum(s - m**2, 1e-4) for s, m in zip(second, first, strict=True))
    return 0.5 * (np.log(v_r / v_c) + (v_c + (first[1] - first[0]) ** 2) / v_r - 1)


@DRIFT.register("gaussian-kl", title="Gaussian KL, diagonal, minus its permutation null", embedded=True)
@sees(latents=("mean", "log-sd"), embeddings=("mean",))
def gaussian_kl(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """value in nats, summed over columns; `where` is the column that adds most."""
    tested = permutation_test(lambda rows, labels: columns_kl(rows, labels).sum(1), reference, current, seed)
    labels = np.repeat([0.0, 1.0], [len(reference), len(current)])[None]
    worst = int(columns_kl(np.concatenate([reference, current]), labels)[0].argmax())
    return tested_reading(
        "Gaussian KL, bias-corrected",
        tested.value - tested.null.mean(),
        tested.p_value,
        alpha,
        where=column_name(names, worst, reference.shape[1]),
    )
