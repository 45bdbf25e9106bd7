"""Largest Welch t over features, Bonferroni-corrected: which channel's mean or spread moved most."""

import numpy as np
from scipy import stats

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT


@DRIFT.register("welch-max", title="largest Welch t over channel means and spreads", embedded=True)
def welch_max(reference: np.ndarray, current: np.ndarray, alpha: float) -> Reading:
    """p is the smallest p times the number of features that vary; features constant on both sides are left out."""
    varies = (reference.std(0) > 1e-9) | (current.std(0) > 1e-9)
    result = stats.ttest_ind(current[:, varies], reference[:, varies], equal_var=False)
    worst = int(np.nanargmax(np.abs(result.statistic)))
    p_value = float(min(1.0, result.pvalue[worst] * varies.sum()))
    feature = int(np.flatnonzero(varies)[worst])
    channels = reference.shape[1] // 2
    where = f"channel {feature % channels} {'mean' if feature < channels else 'spread'}"
    return Reading(
        name="welch-max",
        title="largest Welch t",
        value=float(result.statistic[worst]),
        where=where,
        p_value=p_value,
        threshold=alpha,
        alarm=p_value < alpha,
    )
