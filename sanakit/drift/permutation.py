"""Permutation tests with all re-labellings as one matrix, and Holm's correction.

Under exchangeability of reference and current the p-value (1 + #{null >= observed}) / (1 + permutations) is valid at
any sample size (Phipson and Smyth 2010). What is fitted to both sides together (ranks, PCA, bandwidths) does not see
labels, so validity stays.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

PERMUTATIONS = 999

# pooled rows (N, ...) and weights (B, N), 1 where a row counts as current -> values (B,)
Labelled = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Permuted(NamedTuple):
    value: float
    p_value: float
    null: np.ndarray  # (permutations,)


@lru_cache(2)  # all statistics of a comparison share them
def relabellings(reference: int, current: int, seed: int, permutations: int = PERMUTATIONS) -> np.ndarray:
    """(1 + permutations, N) float32 of 0 and 1; row 0 is the true labelling."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((1 + permutations, reference + current), np.float32)
    labels[0, reference:] = 1
    labels[1:] = generator.permuted(np.repeat(labels[:1], permutations, 0), axis=1)
    labels.flags.writeable = False
    return labels


def permutation_test(
    statistic: Labelled, reference: np.ndarray, current: np.ndarray, seed: int, permutations: int = PERMUTATIONS
) -> Permuted:
    """One-sided: large values are evidence. Differences below rounding count as ties."""
    labels = relabellings(len(reference), len(current), seed, permutations)
    values = statistic(np.concatenate([reference, current]), labels)
    observed, null = float(values[0]), values[1:]
    exceed = int((null >= observed - 1e-6 * max(1.0, abs(observed))).sum())
    return Permuted(observed, (1 + exceed) / (1 + permutations), null)


def group_means(pooled: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (B, d) of the reference and of the current rows under every labelling."""
    count = labels.sum(1, keepdims=True)
    total, current_sum = pooled.sum(0, dtype=np.float64), labels @ pooled
    return (total - current_sum) / (len(pooled) - count), current_sum / count


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjusted p-values: rejecting those at most alpha keeps the chance of any false one below alpha (Holm 1979)."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values)
    steps = np.maximum.accumulate(p_values[order] * (len(p_values) - np.arange(len(p_values))))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def thin(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """A random subset of at most `most` rows, order kept."""
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))]
