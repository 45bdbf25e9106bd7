"""KL of the mean radial power spectra, normalised to shares: where in frequency the energy went.

Columns are the power (not its logarithm) of one picture in every radial band.
"""

from collections.abc import Sequence

import numpy as np

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, judged
from sanakit.drift.permutation import group_means, permutation_test


def shares(power: np.ndarray) -> np.ndarray:
    positive = np.maximum(power, 0) + 1e-12
    return positive / positive.sum(-1, keepdims=True)


def band_terms(pooled: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(B, bands): q log(q / p) of the current's shares q and the reference's p."""
    p, q = (shares(mean) for mean in group_means(pooled, labels))
    return q * np.log(q / p)


@DRIFT.register("spectrum-kl", title="KL of radial power spectra", embedded=True)
def spectrum_kl(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """Every picture counts alike: its power is divided by its sum first. value in nats, minus its permutation null."""
    reference, current = shares(reference), shares(current)
    tested = permutation_test(lambda rows, labels: band_terms(rows, labels).sum(1), reference, current, seed)
    terms = current.mean(0) * np.log(current.mean(0) / reference.mean(0))
    worst = int(np.abs(terms).argmax())
    where = names[worst] if names else f"band {worst}"
    value = tested.value - tested.null.mean()
    return judged(
        "spectrum-kl", "KL of radial power spectra, bias-corrected", value, tested.p_value, alpha, where=where
    )
