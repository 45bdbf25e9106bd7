"""Images farther from the reference than its own tail explains.

No test that only uses ranks can see 3 outliers among 256: all of them lie on one side by chance in 1 of 8 cases.
This one extrapolates: how far is an image from its third nearest reference image (Ramaswamy et al. 2000), and is
that beyond the tail of the reference's own distances? The logarithm of the distance beyond its upper tenth is taken as
exponential (a Pareto tail, Hill 1975), with the uncertainty of its share and rate. An assumption, stated.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats
from scipy.spatial.distance import cdist

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, sees, tested_reading
from sanakit.drift.permutation import thin

NEIGHBOUR = 3
TAIL = 0.1
COUNTS = (1, 2, 3, 5)
QUANTILES = 64
MOST_ROWS = 2048


def log_distances(reference: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log distance of every row to its third nearest reference row (its own left out), columns in reference sd."""
    spread = reference.std(0, dtype=np.float64)
    spread = np.where(spread > 0, spread, 1.0)
    reference, current = reference / spread, current / spread
    within = cdist(reference, reference)
    np.fill_diagonal(within, np.inf)
    near, far = (np.partition(d, NEIGHBOUR - 1, 1)[:, NEIGHBOUR - 1] for d in (within, cdist(current, reference)))
    return np.log(near + 1e-12), np.log(far + 1e-12)


def tail_excess(reference: np.ndarray) -> tuple[float, int, float]:
    """Where the tail starts, how many rows are in it, their mean excess."""
    ordered = np.sort(reference)
    k = max(5, int(TAIL * len(ordered)))
    start = float(ordered[-k - 1])
    return start, k, float((ordered[-k:] - start).mean()) + 1e-12


def chance_of_so_many(count: int, excess: float, draws: int, reference: np.ndarray) -> float:
    """Chance that at least `count` of `draws` new reference images lie `excess` beyond the start of the tail, the
    tail's share and rate being uncertain: Beta(k + 1, n - k) and Gamma(k), integrated by quantiles."""
    _, k, mean = tail_excess(reference)
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    share = stats.beta.ppf(levels, k + 1, len(reference) - k)
    rate = stats.gamma.ppf(levels, k) / (k * mean)
    return float(stats.binom.sf(count - 1, draws, share[:, None] * np.exp(-max(excess, 0) * rate)).mean())


@DRIFT.register("outlier-images", title="images beyond the reference's tail", embedded=True)
@sees(latents=("log-sd",), rows_named=True)
def outlier_images(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """value: how many times the reference's largest distance the farthest current image is away. p: are the r
    farthest of the current side too many, for r of COUNTS, Bonferroni over r. names: of the current rows."""
    near, far = log_distances(thin(reference, MOST_ROWS, seed), current)
    order = np.argsort(-far)
    ranks = [r for r in COUNTS if r <= len(far)]
    start = tail_excess(near)[0]
    p_values = [chance_of_so_many(r, far[order[r - 1]] - start, len(far), near) for r in ranks]
    p_value = min(1.0, min(p_values) * len(ranks))
    farthest = order[: ranks[int(np.argmin(p_values))]]

    def label(i: int) -> str:
        return names[i] if names else f"row {i}"

    where = ", ".join(label(int(i)) for i in farthest) if p_value <= alpha else ""
    value = float(np.exp(far.max() - near.max()))
    return tested_reading("farthest image over the reference's farthest", value, p_value, alpha, where=where)
