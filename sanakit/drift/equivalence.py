"""Parts that are trained on purpose move: did they stay inside a band of effect sizes (Schuirmann 1987)?

Two effects a column: the difference of means in reference sd, and the log ratio of standard deviations. Their intervals
hold for all columns together (Bonferroni). Inside the band with the whole interval: `inside`; outside with the whole
interval: `outside`, the only case that alarms; else undecided, which is no pass. Assumes independent rows and
means that are near Gaussian; the error of log sd uses the columns' own kurtosis.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from sanakit.drift.base import column_name


class Band(NamedTuple):
    """verdict: inside, outside or undecided; effect of the column farthest out, with its simultaneous interval."""

    verdict: str
    effect: float
    ci_low: float
    ci_high: float
    where: str


def equivalence(
    reference: np.ndarray, current: np.ndarray, band: float, alpha: float = 0.05, *, names: Sequence[str] = ()
) -> Band:
    """(n, d) and (m, d), n and m at least 3. A column that is constant in the reference is compared in its own unit."""
    n, m = len(reference), len(current)
    if min(n, m) < 3:
        return Band("undecided", 0.0, -np.inf, np.inf, f"{n} and {m} rows, 3 needed")
    spread_r, spread_c = reference.std(0, ddof=1, dtype=float), current.std(0, ddof=1, dtype=float)
    scale = np.where(spread_r > 1e-12, spread_r, 1.0)
    both = (spread_r > 1e-12) & (spread_c > 1e-12)
    effects = np.stack(
        [
            (current.mean(0, dtype=float) - reference.mean(0, dtype=float)) / scale,
            np.log(np.where(both, spread_c, 1) / np.where(both, spread_r, 1)),
        ]
    )

    def tail(x: np.ndarray) -> np.ndarray:
        return np.maximum(np.nan_to_num(stats.kurtosis(x, axis=0)) + 2, 0.5)

    errors = np.stack(
        [
            np.sqrt(1 / n + (spread_c / scale) ** 2 / m),
            np.where(both, np.sqrt(tail(reference) / (4 * n) + tail(current) / (4 * m)), 0),
        ]
    )
    width = stats.t.ppf(1 - alpha / (2 * effects.size), min(n, m) - 1) * errors
    low, high = effects - width, effects + width
    nearest = np.where((low <= 0) & (high >= 0), 0, np.minimum(np.abs(low), np.abs(high)))
    kind, column = np.unravel_index(int(np.abs(effects).argmax()), effects.shape)
    inside = bool((np.abs(low) <= band).all() and (np.abs(high) <= band).all())
    outside = bool((nearest > band).any())
    if outside:
        kind, column = np.unravel_index(int(nearest.argmax()), effects.shape)
    at = column_name(names, int(column), len(scale)) + (" (spread)" if kind else "")
    verdict = "outside" if outside else "inside" if inside else "undecided"
    effect, ci_low, ci_high = (float(x[kind, column]) for x in (effects, low, high))
    return Band(verdict, effect, ci_low, ci_high, at)
