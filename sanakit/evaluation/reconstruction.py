"""How well images come back from a VAE."""

import numpy as np
import torch
from torch import Tensor


def psnr(images: Tensor, reconstructed: Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio of every image in dB, range [-1, 1]. (N,)"""
    error = (images - reconstructed).square().mean((1, 2, 3)).clamp_min(1e-10)
    return (10 * torch.log10(4 / error)).numpy()
