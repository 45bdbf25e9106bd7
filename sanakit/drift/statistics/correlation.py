"""Which pair of channels changed its correlation: rank shift of every image's Fisher z, maximum over pairs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, sees
from sanakit.drift.statistics.rank_max import rank_max


@DRIFT.register("correlation-max", title="largest change of a channel correlation", embedded=True)
@sees(latents=("correlation",))
def correlation_max(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """Columns are Fisher z of channel pairs, one row per image; value in sd of their normal scores."""
    reading = rank_max(reference, current, alpha, names=names, seed=seed)
    return replace(reading, title="largest change of a channel correlation, in sd")
