"""Rectified flow as Sana trains it (arXiv 2410.10629): sigma in [0, 1], 1 = noise; velocity = noise - latents.

Noise, velocity and loss live in the VAE's own normalised latent space.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

TIMESTEP_SCALE = 1000.0  # the core's time embedding counts in thousandths of sigma
EVAL_SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


def flow_shift_for(latent_shape: tuple[int, int, int]) -> float:
    """alpha = sqrt(C H W / 4096), RAE (arXiv 2510.11690), never below 1: larger latents need more noise."""
    channels, height, width = latent_shape
    return max(1.0, (channels * height * width / 4096) ** 0.5)


def swapped_shift(shift: float, before: tuple[int, int, int], after: tuple[int, int, int]) -> float:
    """The shift of a base whose latents of shape `before` are replaced by latents of shape `after`, (C, H, W): its own
    shift times the square root of the ratio of values per image (SD3, arXiv 2403.03206, section 5.3.2).

    The base's shift is what its core was trained with, so latents of equal size keep it whatever it is.
    """
    return shift * (math.prod(after) / math.prod(before)) ** 0.5


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def sample_sigmas(count: int, *, shift: float, generator: torch.Generator) -> Tensor:
    """Logit-normal(0, 1) (SD3, arXiv 2403.03206), then shifted. (B,)"""
    return shift_sigmas(torch.sigmoid(torch.randn(count, generator=generator)), shift)


def noise_power_ratio(shift: float = 1.0) -> float:
    """E[sigma^2] / E[(1 - sigma)^2] over the training sigmas: noise power over signal power of a batch."""
    levels = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    sigmas = shift_sigmas(torch.sigmoid(torch.special.ndtri(levels)), shift)
    return (sigmas.square().mean() / (1 - sigmas).square().mean()).item()


def interpolate(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """(1 - sigma) latents + sigma noise, sigma (B,) broadcast over (B, C, h, w)."""
    s = sigmas.reshape(-1, 1, 1, 1)
    return (1 - s) * latents + s * noise


def predict_clean(noisy: Tensor, velocity: Tensor, sigmas: Tensor) -> Tensor:
    """The one-step clean estimate `noisy - sigma * velocity`."""
    return noisy - sigmas.reshape(-1, 1, 1, 1) * velocity


def velocity_loss(predicted: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error to `noise - latents`, per sample. (B,)"""
    return F.mse_loss(predicted, noise - latents, reduction="none").mean((1, 2, 3))
