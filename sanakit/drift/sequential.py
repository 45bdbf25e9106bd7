"""A test of a stream that may be read after every block, for ever: an e-process by betting on ranks.

Null: reference images and all blocks are exchangeable. Then, given the order of everything before it, a block is a
random subset of all that was seen, so its normal scores among them are drawn without replacement from the fixed scores
Phi^-1(i / (N + 1)). Those are 1-sub-Gaussian: i / (N + 1) is the mean of the i-th of N uniform order statistics, so by
Jensen the mean of cosh(t Phi^-1(i / (N + 1))) is at most that of cosh(t Z), exp(t^2 / 2). Drawing without replacement
only lowers it (Hoeffding 1963, theorem 4), and so do ties that share their mean score. Hence for a sum S of V scores
exp(t S - t^2 V / 2) is a supermartingale, as is its mixture over t ~ N(0, spread^2) (Robbins 1970), over columns and
over the block at which a drift may have begun (Shin, Ramdas and Rinaldo 2023). By Ville's inequality it ever reaches
1 / alpha with probability at most alpha, at any sample size, for any distribution.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy import stats

SPREADS = (0.1, 0.4)  # of the drift that is bet on, in sd of the normal scores
MOST_ROWS = 256  # of a block; memory is this times the number of blocks


class Evidence(NamedTuple):
    """value: the e-process; 1 is none. column and since: where most of it lies, and the block from which on. effect:
    mean normal score of the column since then, with a 95% interval. highest: of value so far."""

    value: float
    column: int
    since: int
    effect: float
    ci_low: float
    ci_high: float
    highest: float


@dataclass
class EProcess:
    """reference: (n, d). `add` a block of rows (m, d); it is pooled with all before, so nothing is ever forgotten."""

    reference: np.ndarray
    sums: list[np.ndarray] = field(default_factory=list)  # of scores, (d,) a block
    counts: list[int] = field(default_factory=list)
    highest: float = 1.0

    def __post_init__(self) -> None:
        if len(self.reference) < 2 or not np.isfinite(self.reference).all():
            raise ValueError(f"a reference of {self.reference.shape} must be finite and have two rows or more")
        self.pool = np.sort(np.asarray(self.reference, np.float32).T, 1)  # (d, N), every column in order

    def add(self, rows: np.ndarray) -> Evidence:
        """Rows with a value that is not finite are the caller's to count and leave out."""
        rows = np.asarray(rows, np.float32)[:MOST_ROWS]
        if len(rows):
            self.pool = np.sort(np.concatenate([self.pool, rows.T], 1), 1, kind="stable")
            below, upto = places(self.pool, rows)
            self.sums.append(tied_scores(below, upto, self.pool.shape[1]).sum(1))
            self.counts.append(len(rows))
        return self.evidence()

    def evidence(self) -> Evidence:
        """After block K: sum over starts k <= K of w_k E(k..K), w_k = 1 / (k (k + 1)); the weight of later starts, 1 /
        (K + 1), has not bet yet."""
        if not self.sums:
            return Evidence(1.0, 0, 0, 0.0, -np.inf, np.inf, self.highest)
        logs = log_wealth(np.stack(self.sums), np.array(self.counts))  # (K, d)
        blocks = np.arange(1, len(logs) + 1)
        weighted = logs - np.log(blocks * (blocks + 1))[:, None] - np.log(logs.shape[1])
        with np.errstate(over="ignore"):
            value = float(np.exp(weighted).sum() + 1 / (len(logs) + 1))
        self.highest = max(self.highest, value)
        since, column = np.unravel_index(int(weighted.argmax()), weighted.shape)
        rows = sum(self.counts[since:])
        effect = float(np.stack(self.sums[since:])[:, column].sum() / rows)
        error = 1.96 * np.sqrt(1 / rows + 1 / (len(self.reference) + sum(self.counts[:since])))
        return Evidence(
            value, int(column), int(since), effect, effect - float(error), effect + float(error), self.highest
        )


def places(ordered: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns in order (d, N), rows (m, d) -> how many values are below, and how many not above, each (d, m)."""
    sides = [
        [np.searchsorted(line, x, side) for line, x in zip(ordered, rows.T, strict=True)] for side in ("left", "right")
    ]
    return np.array(sides[0]), np.array(sides[1])


def tied_scores(below: np.ndarray, upto: np.ndarray, count: int) -> np.ndarray:
    """Mean of Phi^-1(i / (count + 1)) over the ranks below < i <= upto. The score of the mean rank would not do: with
    many ties the scores of a column would no longer sum to zero."""
    sums = np.concatenate([[0], np.cumsum(stats.norm.ppf(np.arange(1, count + 1) / (count + 1)))])
    return (sums[upto] - sums[below]) / (upto - below)


def log_wealth(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums (K, d) of counts (K,) scores -> (K, d): log of the bet that starts at block k and holds until the last,
    the mean over SPREADS of (1 + s^2 V)^(-1/2) exp(s^2 S^2 / (2 (1 + s^2 V)))."""
    total = np.cumsum(sums[::-1], 0)[::-1]
    rows = np.cumsum(counts[::-1])[::-1][:, None].astype(float)
    parts = [s**2 * total**2 / (2 * (1 + s**2 * rows)) - 0.5 * np.log1p(s**2 * rows) for s in SPREADS]
    return np.logaddexp.reduce(parts, 0) - np.log(len(SPREADS))
