"""Pictures farther out than the reference's tail explains.

No test that only uses ranks can see 3 outliers among 256: all of them lie on one side by chance in 1 of 8 cases.
This one extrapolates the reference's tail: the logarithm of the distance beyond its upper tenth is taken as
exponential (a Pareto tail, Hill 1975), with the uncertainty of its share and rate. An assumption, stated.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, judged

TAIL = 0.1
COUNTS = (1, 2, 3, 5)
QUANTILES = 64


def log_distance(rows: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """(n,) log of the root mean square of robust z-scores."""
    return np.log(np.sqrt((((rows - centre) / spread) ** 2).mean(1)) + 1e-12)


def tail_excess(reference: np.ndarray) -> tuple[float, int, float]:
    """Where the tail starts, how many rows are in it, their mean excess."""
    ordered = np.sort(reference)
    k = max(5, int(TAIL * len(ordered)))
    start = float(ordered[-k - 1])
    return start, k, float((ordered[-k:] - start).mean()) + 1e-12


def chance_of_so_many(count: int, excess: float, draws: int, reference: np.ndarray) -> float:
    """Chance that at least `count` of `draws` new reference pictures lie `excess` beyond the start of the tail, the
    tail's share and rate being uncertain: Beta(k + 1, n - k) and Gamma(k), integrated by quantiles."""
    _, k, mean = tail_excess(reference)
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    share = stats.beta.ppf(levels, k + 1, len(reference) - k)
    rate = stats.gamma.ppf(levels, k) / (k * mean)
    return float(stats.binom.sf(count - 1, draws, share[:, None] * np.exp(-max(excess, 0) * rate)).mean())


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
    order = np.argsort(-far)
    ranks = [r for r in COUNTS if r <= len(far)]
    start = tail_excess(near)[0]
    p_values = [chance_of_so_many(r, far[order[r - 1]] - start, len(far), near) for r in ranks]
    p_value = min(1.0, min(p_values) * len(ranks))
    farthest = order[: ranks[int(np.argmin(p_values))]]
    where = "rows " + ", ".join(str(int(i)) for i in farthest) if p_value <= alpha else ""
    value = float(np.exp(far.max() - near.max()))
    return judged(
        "outlier-pictures", "farthest picture over the reference's farthest", value, p_value, alpha, where=where
    )
