"""The drift registry and the image-level features that statistics work on.

A statistic is a pure function `(reference, current, alpha) -> Reading` on feature matrices (n, d), one row a picture.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sanakit.contracts import Reading
from sanakit.registry import Registry

Statistic = Callable[[np.ndarray, np.ndarray, float], Reading]
DRIFT: Registry[Statistic] = Registry("drift", "sanakit.drift")


def latent_features(latents: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, 2C): channel means and log standard deviations of every picture."""
    mean = latents.mean((2, 3))
    std = latents.std((2, 3), unbiased=False) if latents[0, 0].numel() > 1 else torch.ones_like(mean)
    return torch.cat([mean, std.clamp_min(1e-6).log()], 1)
