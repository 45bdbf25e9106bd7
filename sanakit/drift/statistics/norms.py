"""Token norms, outlier tokens and prompt lengths: scale and outliers are what breaks a text-encoder swap first."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, sees
from sanakit.drift.statistics.rank_max import rank_max


@DRIFT.register("embedding-norms", title="token norms, outlier tokens, prompt lengths", embedded=True)
@sees(embeddings=("norms",))
def embedding_norms(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """Columns: log median norm, log largest over median, log number of tokens, one row a prompt."""
    reading = rank_max(reference, current, alpha, names=names, seed=seed)
    return replace(reading, title="token norms and outlier tokens, largest shift in sd")
