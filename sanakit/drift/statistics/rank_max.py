"""Largest shift in ranks over features: normal scores (van der Waerden) against permutations.

Ranks make it proof against outliers and heavy tails; the maximum over columns against permutations respects their
dependence (Westfall and Young 1993), so it is at least as strong as Bonferroni.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, column_name, sees, tested_reading
from sanakit.drift.features import OF_LATENTS
from sanakit.drift.permutation import group_means, permutation_test


def normal_scores(pooled: np.ndarray) -> np.ndarray:
    """(N, d) -> Gaussian quantiles of the ranks, ties averaged, unit spread; a constant column becomes 0."""
    scores = stats.norm.ppf(stats.rankdata(pooled, axis=0) / (len(pooled) + 1))
    return ((scores - scores.mean(0)) / (scores.std(0) + 1e-12)).astype(np.float32)


def columns_shift(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(B, d): z-scores of the difference of group means under permutation."""
    reference, current = group_means(scores, labels)
    count = labels.sum(1, keepdims=True)
    return (current - reference) / np.sqrt(1 / count + 1 / (len(scores) - count))


@DRIFT.register("rank-max", title="largest shift in ranks over features", embedded=True)
@sees(latents=OF_LATENTS, embeddings=("mean", "log-sd"))
def rank_max(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """value: the effect size in standard deviations of the ranks' normal scores, with its 95% interval."""
    scores = normal_scores(np.concatenate([reference, current]))
    tested = permutation_test(
        lambda rows, labels: np.abs(columns_shift(rows, labels)).max(1),
        scores[: len(reference)],
        scores[len(reference) :],
        seed,
    )
    labels = np.repeat([0.0, 1.0], [len(reference), len(current)])[None]
    shifts = columns_shift(scores, labels)[0]
    worst = int(np.abs(shifts).argmax())
    error = np.sqrt(1 / len(reference) + 1 / len(current))
    value = float(shifts[worst] * error)
    return tested_reading(
        "largest shift in ranks, in sd",
        value,
        tested.p_value,
        alpha,
        where=column_name(names, worst, reference.shape[1]),
        ci_low=value - 1.96 * float(error),
        ci_high=value + 1.96 * float(error),
    )
