"""Population stability index, sum (q - p) log(q / p) over ten bins, of the column where it is largest.

Bins are deciles of both sides together, so that labels can be permuted; the usual .1 and .25 are no guarantee, p is.
"""

from collections.abc import Sequence

import numpy as np

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, column_name, sees, tested_reading
from sanakit.drift.permutation import permutation_test, thin

BINS = 10
MOST_ROWS = 1024
HALF_A_COUNT = 0.5  # added to every bin: an empty one would make the index infinite


def in_bins(pooled: np.ndarray) -> np.ndarray:
    """(N, d) -> one-hot (N, d, BINS)."""
    edges = np.quantile(pooled, np.linspace(0, 1, BINS + 1)[1:-1], axis=0)  # (9, d)
    index = (pooled[:, :, None] > edges.T[None]).sum(2)
    return np.eye(BINS, dtype=np.float32)[index]


def columns_psi(one_hot: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(B, d)."""
    counts = (labels @ one_hot.reshape(len(one_hot), -1)).reshape(len(labels), *one_hot.shape[1:])
    rest = one_hot.sum(0) - counts
    q, p = ((c + HALF_A_COUNT) / (c.sum(2, keepdims=True) + HALF_A_COUNT * BINS) for c in (counts, rest))
    return ((q - p) * np.log(q / p)).sum(2)


@DRIFT.register("psi", title="population stability index, largest column", embedded=True)
@sees(latents=("mean", "log-sd"), embeddings=("norms",))
def psi(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    reference, current = thin(reference, MOST_ROWS, seed), thin(current, MOST_ROWS, seed)
    one_hot = in_bins(np.concatenate([reference, current]))
    labels = np.repeat([0.0, 1.0], [len(reference), len(current)])[None]
    worst = int(columns_psi(one_hot, labels)[0].argmax())
    tested = permutation_test(lambda _, labels: columns_psi(one_hot, labels).max(1), reference, current, seed)
    where = column_name(names, worst, reference.shape[1])
    return tested_reading("largest population stability index", tested.value, tested.p_value, alpha, where=where)
