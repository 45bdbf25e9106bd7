"""Gaussian KL of two spectra: how far the share of every frequency moved, whatever its power.

Columns are the log power of an image in rings of frequencies. Gaussian fields with power p and q in a coefficient have
KL(q || p) = (q/p - 1 - log(q/p)) / 2 there (Itakura and Saito 1968): it depends on the ratio alone, so weak frequencies
count as much as strong ones.
"""

from collections.abc import Sequence

import numpy as np

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, sees, tested_reading
from sanakit.drift.permutation import group_means, permutation_test


def shapes(log_power: np.ndarray) -> np.ndarray:
    """(N, rings): log power relative to the mean over rings, so that the scale of an image does not count."""
    return log_power - log_power.mean(1, keepdims=True)


def ring_terms(pooled: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(B, rings): KL in a coefficient of every ring, of the current's geometric mean power q from the reference's p."""
    reference, current = group_means(pooled, labels)
    log_ratio = np.clip(current - reference, -50, 50)
    return 0.5 * (np.exp(log_ratio) - 1 - log_ratio)


@DRIFT.register("spectrum-kl", title="Gaussian KL of the spectra's shapes", embedded=True)
@sees(latents=("power",))
def spectrum_kl(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """value in nats, the mean over rings, minus its permutation null; `where` is the ring that adds most."""
    reference, current = shapes(reference), shapes(current)
    tested = permutation_test(lambda rows, labels: ring_terms(rows, labels).mean(1), reference, current, seed)
    labels = np.repeat([0.0, 1.0], [len(reference), len(current)])[None]
    worst = int(ring_terms(np.concatenate([reference, current]), labels)[0].argmax())
    return tested_reading(
        "Gaussian KL of the spectra, bias-corrected",
        tested.value - tested.null.mean(),
        tested.p_value,
        alpha,
        where=names[worst] if names else f"ring {worst}",
    )
