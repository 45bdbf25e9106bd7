"""Largest Welch t over features, Bonferroni-corrected: which channel's mean or spread moved most."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, column_name, judged


@DRIFT.register("welch-max", title="largest Welch t over channel moments", embedded=True)
def welch_max(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """value: t. p is the smallest p times the number of columns that vary (the first step of Holm)."""
    n, m = len(reference), len(current)
    reference, current = reference.astype(np.float64), current.astype(np.float64)
    shift = current.mean(0) - reference.mean(0)
    part_r, part_c = reference.var(0) * n / max(n - 1, 1) / n, current.var(0) * m / max(m - 1, 1) / m
    rounding = 1e-9 + 1e-6 * np.abs(reference.mean(0))
    error = np.maximum(np.sqrt(part_r + part_c), rounding)
    varies = (error > rounding) | (np.abs(shift) > rounding)
    if not varies.any():
        return judged("welch-max", "largest Welch t", 0.0, 1.0, alpha, where="no column varies")
    t = shift / error
    freedom = error**4 / np.maximum(part_r**2 / max(n - 1, 1) + part_c**2 / max(m - 1, 1), 1e-300)
    worst = int(np.argmax(np.where(varies, np.abs(t), 0)))
    p_value = min(1.0, 2 * float(stats.t.sf(abs(t[worst]), freedom[worst])) * int(varies.sum()))
    where = column_name(names, worst, reference.shape[1])
    return judged("welch-max", "largest Welch t", t[worst], p_value, alpha, where=where)
