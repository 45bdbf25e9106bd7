"""CUSUM (Page 1954) over many columns, its threshold calibrated to an average run length by simulation: what the
e-process of sanakit is compared with in drift_study.py.

Every block gives a z-score a column (the mean normal score of its rows among the reference's, times the root of their
number); C+ = max(0, C+ + z - k) and its mirror image; the largest over columns alarms at h. h is set so that clean
streams alarm once in `run_length` blocks on average. Assumptions: blocks are independent, their z-scores near
Gaussian with the reference's correlations, and the reference one random sample: its own error, common to all
blocks of a run, is part of the simulation.
"""

from dataclasses import dataclass, field

import numpy as np

from sanakit.drift.sequential import places, tied_scores

SLACK = 0.5  # k, half of the shift of a block's z that is found fastest
PATHS = 200


@dataclass
class Cusum:
    """reference (n, d); block_rows: rows of a block; run_length: blocks between false alarms."""

    reference: np.ndarray
    block_rows: int
    run_length: float
    threshold: float = 0.0
    upper: np.ndarray = field(default_factory=lambda: np.empty(0))
    lower: np.ndarray = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        columns = self.reference.shape[1]
        self.ordered = np.sort(self.reference.T, 1)
        self.upper, self.lower = np.zeros(columns), np.zeros(columns)
        if not self.threshold:
            self.threshold = calibrate(self.reference, self.block_rows, self.run_length)

    def z_scores(self, rows: np.ndarray) -> np.ndarray:
        """(m, d) -> (d,). A row takes its place among the reference's; ties share their mean score."""
        below, upto = places(self.ordered, rows)
        return tied_scores(below, upto + 1, len(self.reference) + 1).mean(1) * np.sqrt(len(rows))

    def add(self, rows: np.ndarray) -> tuple[bool, int, float]:
        """Whether it alarms, at which column, and how far the sum is in units of the threshold."""
        z = self.z_scores(rows)
        self.upper, self.lower = np.maximum(0, self.upper + z - SLACK), np.maximum(0, self.lower - z - SLACK)
        worst = np.maximum(self.upper, self.lower)
        return bool(worst.max() >= self.threshold), int(worst.argmax()), float(worst.max() / self.threshold)


def calibrate(reference: np.ndarray, block_rows: int, run_length: float, seed: int = 0) -> float:
    """The h at which simulated clean streams run `run_length` blocks on average before they alarm."""
    count, columns = reference.shape
    scores = tied_scores(*places(np.sort(reference.T, 1), reference), count).T
    generator = np.random.default_rng(seed)
    _, values, vectors = np.linalg.svd(scores / np.sqrt(count), full_matrices=False)
    root = (values[:, None] * vectors).astype(np.float32)  # root^T root is the covariance, so normal @ root has it

    def draw() -> np.ndarray:
        return (generator.standard_normal((PATHS, len(root)), np.float32) @ root).astype(float)

    offset = draw() * np.sqrt(block_rows / count)
    upper, lower, length = np.zeros((PATHS, columns)), np.zeros((PATHS, columns)), int(np.ceil(run_length))
    highest = np.zeros((PATHS, length))
    for step in range(length):
        z = draw() + offset
        upper, lower = np.maximum(0, upper + z - SLACK), np.maximum(0, lower - z - SLACK)
        highest[:, step] = np.maximum(upper, lower).max(1)
    highest = np.maximum.accumulate(highest, 1)
    return float(np.quantile(highest[:, -1], np.exp(-1)))  # a run of exponential length outlives its mean so often
