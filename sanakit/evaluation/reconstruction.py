"""How well images come back from a VAE."""

import numpy as np
import torch
from torch import Tensor


def psnr(images: Tensor, reconstructed: Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio of every image in dB, range [-1, 1]. (N,)"""
    error = (images - reconstructed).square().mean((1, 2, 3)).clamp_min(1e-10)
    return (10 * torch.log10(4 / error)).numpy()


def kernel_distances(features: Tensor, reconstructed: Tensor) -> np.ndarray:
    """What every image adds to the KID (arXiv 1801.01401) between images and their reconstructions, both (N, D); the
    mean is the KID. (N,)

    An image is compared with every other image and with every other image's reconstruction, never with its own: the
    estimate is unbiased for pairs (arXiv 0805.2368, lemma 6), and exactly 0 where every reconstruction is its image.
    """
    from torchmetrics.image.kid import poly_kernel  # seconds to import

    first, second = features.double(), reconstructed.double()
    across = poly_kernel(first, second)
    pairs = poly_kernel(first, first) + poly_kernel(second, second) - across - across.T
    return (pairs.fill_diagonal_(0).sum(1) / (len(first) - 1)).numpy()
