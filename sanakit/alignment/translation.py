"""Latents of one VAE in the space of another, by a closed form: ridge of a target latent on the 3 x 3 source latents
around it, solved from images that both have encoded and evaluated on images that it was not solved from.

Pure latent-to-latent translators (SD-Latent-Interposer) publish no quality; here R2 and decoded PSNR come with the map.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sanakit.alignment.cross_moments import CrossMoments
from sanakit.errors import SanakitError
from sanakit.vaes import VAE
from sanakit.vaes.translated import SIDE, LatentMap, grid_factors, padded

PENALTY = 1e-3  # of the ridge, times the mean variance of a source latent
HELD_OUT = 4  # one image in so many is evaluated, not solved from
FEWEST = 32  # images
CHUNK = 64
ROUNDING = 1e-5  # latents that vary by less than this share of their size do not vary
RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Share of the variance of the target's normalised latents that the map explains on held-out images, with its 95%
    bootstrap interval over images."""

    r2: float
    low: float
    high: float
    images: int


def held_out_rows(count: int) -> Tensor:
    """Of `count` paired images, which are evaluated. (count,) bool. Raises SK0403 below FEWEST."""
    if count < FEWEST:
        raise SanakitError("SK0403", f"{count} images, a translation is solved from at least {FEWEST}")
    return torch.arange(count) % HELD_OUT == HELD_OUT - 1


@torch.no_grad()
def solve_translation(source: VAE, target: VAE, raw_source: Tensor, raw_target: Tensor) -> LatentMap:
    """From raw latents (N, C, h, w) and (N, D, H, W) of the same images. Solved between normalised latents, where every
    channel counts as the core sees it; the map that is returned takes raw ones. Raises SK0219, SK0403 or SK0204."""
    down, up = grid_factors(source.spec, target.spec)
    inputs = source.spec.latent_channels * down * down
    moments = CrossMoments.empty(inputs * SIDE * SIDE, target.spec.latent_channels * up * up)
    for first, second in zip(raw_source.split(CHUNK), raw_target.split(CHUNK), strict=True):
        read = F.unfold(padded(source.normalize(first), down), SIDE)  # (B, C d d 9, places)
        goal = F.pixel_unshuffle(target.normalize(second), up).flatten(2)
        moments.add(read.transpose(1, 2).flatten(0, 1), goal.transpose(1, 2).flatten(0, 1))
    weight, bias = moments.ridge(PENALTY)
    return LatentMap(*_of_raw(source, target, weight.unflatten(1, (inputs, SIDE, SIDE)), bias, down, up), down, up)


def _of_raw(source: VAE, target: VAE, weight: Tensor, bias: Tensor, down: int, up: int) -> tuple[Tensor, Tensor]:
    """Both normalisations folded into a map (D u u, C d d, 3, 3) of normalised latents: exact, as borders repeat."""
    mean, std = (v.flatten().double().repeat_interleave(down * down) for v in (source.latents_mean, source.latents_std))
    offset, width = (v.flatten().double().repeat_interleave(up * up) for v in (target.latents_mean, target.latents_std))
    scaled = weight.double() / std[:, None, None]
    shift = bias.double() - (scaled * mean[:, None, None]).sum((1, 2, 3))
    return (scaled * width[:, None, None, None]).float(), (shift * width + offset).float()


@torch.no_grad()
def explained(latent_map: LatentMap, target: VAE, raw_source: Tensor, raw_target: Tensor) -> Explained:
    """On images that the map was not solved from: raw latents (N, C, h, w) and (N, D, H, W). 0 where the
    target's latents do not vary, as in `CrossMoments.r2`."""
    goal = target.normalize(raw_target).double()
    translated = target.normalize(torch.cat([latent_map(part) for part in raw_source.split(CHUNK)])).double()
    errors = (goal - translated).square().sum((1, 2, 3)).numpy()
    power = (goal - goal.mean((0, 2, 3), keepdim=True)).square().sum((1, 2, 3)).numpy()
    size = (raw_target.double() / target.latents_std.to(raw_target.device)).square().sum().item()
    if power.sum() <= ROUNDING**2 * size:
        return Explained(r2=0.0, low=0.0, high=0.0, images=len(errors))
    drawn = np.random.default_rng(0).integers(len(errors), size=(RESAMPLES, len(errors)))
    shares = 1 - errors[drawn].sum(1) / np.maximum(power[drawn].sum(1), 1e-12)
    low, high = np.quantile(shares, (0.025, 0.975))
    r2 = 1 - errors.sum() / max(power.sum(), 1e-12)
    return Explained(r2=float(r2), low=float(low), high=float(high), images=len(errors))
