"""Full-covariance Gaussian KL(current || reference) with shrinkage, minus its permutation null.

Unshrunk it is biased by about d(d+3)/4 (1/n + 1/m) and undefined for n <= d; fewer than 10 d rows are refused.
"""

from collections.abc import Sequence

import numpy as np

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, tested_reading
from sanakit.drift.permutation import permutation_test, thin
from sanakit.errors import SanakitError

ROWS_PER_DIMENSION = 10
MOST_ROWS = 1024  # a side
CHUNK = 250


def group_gaussians(pooled: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Means (B, d) and covariances (B, d, d) of reference and current rows under every labelling."""
    size = pooled.shape[1]
    products = np.concatenate([pooled, (pooled[:, :, None] * pooled[:, None]).reshape(len(pooled), -1)], 1)
    count = labels.sum(1, dtype=np.float64)[:, None]
    current_sums = labels.astype(np.float64) @ products
    groups = ((products.sum(0) - current_sums) / (len(pooled) - count), current_sums / count)
    gaussians = []
    for group in groups:
        mean = group[:, :size]
        gaussians += [mean, group[:, size:].reshape(-1, size, size) - mean[:, :, None] * mean[:, None]]
    return tuple(gaussians)


def shrunk(covariance: np.ndarray, count: int) -> np.ndarray:
    """(1 - s) C + s tr(C)/d I with s = d / (d + n): little where rows are many, never singular."""
    size = covariance.shape[-1]
    share = size / (size + count)
    level = np.trace(covariance, axis1=-2, axis2=-1)[..., None, None] / size
    return (1 - share) * covariance + (share * level + 1e-9) * np.eye(size)


def gaussian_divergence(mean_r: np.ndarray, cov_r: np.ndarray, mean_c: np.ndarray, cov_c: np.ndarray) -> np.ndarray:
    """KL(N(mean_c, cov_c) || N(mean_r, cov_r)) in nats, batched over the first axis."""
    inverse = np.linalg.inv(cov_r)
    shift = mean_r - mean_c
    quadratic = np.einsum("bi,bij,bj->b", shift, inverse, shift)
    trace = np.einsum("bij,bji->b", inverse, cov_c)
    return 0.5 * (trace + quadratic - shift.shape[1] + np.linalg.slogdet(cov_r)[1] - np.linalg.slogdet(cov_c)[1])


def labelled_kl(pooled: np.ndarray, labels: np.ndarray, *, symmetric: bool = False) -> np.ndarray:
    scaled = ((pooled - pooled.mean(0)) / (pooled.std(0) + 1e-12)).astype(np.float64)
    values = []
    for chunk in np.array_split(labels, max(1, len(labels) // CHUNK)):
        current = int(chunk[0].sum())
        mean_r, cov_r, mean_c, cov_c = group_gaussians(scaled, chunk)
        cov_r, cov_c = shrunk(cov_r, len(pooled) - current), shrunk(cov_c, current)
        value = gaussian_divergence(mean_r, cov_r, mean_c, cov_c)
        values.append((value + gaussian_divergence(mean_c, cov_c, mean_r, cov_r)) / 2 if symmetric else value)
    return np.concatenate(values)


def refuse_few(reference: np.ndarray, current: np.ndarray) -> None:
    needed = ROWS_PER_DIMENSION * reference.shape[1]
    if min(len(reference), len(current)) < needed:
        raise SanakitError(
            "SK0703",
            f"{len(reference)} and {len(current)} rows cannot carry a covariance of {reference.shape[1]} dimensions, "
            f"at least {needed} a side needed",
        )


@DRIFT.register("gaussian-kl-full", title="Gaussian KL, full covariance, minus its permutation null", embedded=True)
def gaussian_kl_full(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """value in nats. Raises SK0703 with fewer than 10 rows a dimension."""
    refuse_few(reference, current)
    reference, current = thin(reference, MOST_ROWS, seed), thin(current, MOST_ROWS, seed)
    tested = permutation_test(labelled_kl, reference, current, seed)
    value = tested.value - tested.null.mean()
    return tested_reading("Gaussian KL with covariance, bias-corrected", value, tested.p_value, alpha)
