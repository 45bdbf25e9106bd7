"""Pictures farther out than the reference's tail explains.

No test that only uses ranks can see 3 outliers among 256: all of them lie on one side by chance in 1 of 8 cases.
This one extrapolates the reference's tail: the logarithm of the distance beyond its upper tenth is taken as
exponential (a Pareto tail, Hill 1975), with the exact predictive law for an estimated rate. An assumption, stated.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, judged

TAIL = 0.1
COUNTS = (1, 2, 3, 5, 10)


def log_distance(rows: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """(n,) log of the root mean square of robust z-scores."""
    return np.log(np.sqrt((((rows - centre) / spread) ** 2).mean(1)) + 1e-12)


def tail_probability(distance: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Chance that a new reference picture lies at least so far out: (k/n) (1 + e / (k b))^-k for an excess e over the
    k-th largest, b the mean excess; the empirical share below it."""
    ordered = np.sort(reference)
    k = max(5, int(TAIL * len(ordered)))
    start = ordered[-k - 1]
    mean = float((ordered[-k:] - start).mean()) + 1e-12
    beyond = k / len(ordered) * (1 + np.maximum(distance - start, 0) / (k * mean)) ** -k
    return np.where(distance > start, beyond, 1.0)


@DRIFT.register("outlier-pictures", title="pictures beyond the reference's tail", embedded=True)
def outlier_pictures(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """value: how many times the reference's largest distance the farthest current picture is away. p: are the r
    farthest of the current side too many, for r of COUNTS, Bonferroni over r."""
    centre = np.median(reference, 0)
    low, high = np.quantile(reference, [0.25, 0.75], axis=0)
    spread = np.where(high > low, (high - low) / 1.349, reference.std(0) + 1e-9)
    near, far = (log_distance(rows, centre, spread) for rows in (reference, current))
    tails = np.sort(tail_probability(far, near))
    ranks = [r for r in COUNTS if r <= len(tails)]
    p_values = [float(stats.binom.sf(r - 1, len(tails), tails[r - 1])) for r in ranks]
    p_value = min(1.0, min(p_values) * len(ranks))
    farthest = np.argsort(-far)[: ranks[int(np.argmin(p_values))]]
    where = "rows " + ", ".join(str(int(i)) for i in farthest) if p_value <= alpha else ""
    value = float(np.exp(far.max() - near.max()))
    return judged(
        "outlier-pictures", "farthest picture over the reference's farthest", value, p_value, alpha, where=where
    )
