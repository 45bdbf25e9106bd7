"""How far a swapped core's features are from the base's, by depth: the same images, captions, sigma, matched noise.

DC-Gen (arXiv 2509.25180) reports this distance before and after alignment. Noise is matched through the Procrustes map
R of the patches: the base sees R e + (I - R R^T) e' where the candidate sees e, which is unit Gaussian in both spaces.
Token grids of different size share no noise: their distance has a floor, and features are pooled to the coarser grid.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sanakit.alignment.coupling import couple_noise, patch_rotation
from sanakit.assembly import LatentDiffusion, core_at_work
from sanakit.flow import interpolate
from sanakit.text_encoders import PromptEmbeds


def feature_distance(
    system: LatentDiffusion,
    base: LatentDiffusion,
    latents: Tensor,
    base_latents: Tensor,
    prompt: PromptEmbeds,
    base_prompt: PromptEmbeds,
    *,
    sigma: float = 0.7,
    seed: int = 0,
) -> list[float]:
    """|f - f_base|^2 / |f_base|^2 after the patch embedding and after every block; latents (N, C, h, w) of the same N
    images in both spaces."""
    noise, base_noise = matched_noise(system, base, latents, base_latents, seed)
    level = torch.full((len(latents),), sigma)
    features = block_features(system, interpolate(latents, noise, level), level, prompt)
    base_features = block_features(base, interpolate(base_latents, base_noise, level), level, base_prompt)
    return [_relative(a, b) for a, b in zip(features, base_features, strict=True)]


def matched_noise(
    system: LatentDiffusion, base: LatentDiffusion, latents: Tensor, base_latents: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape, generator=generator)
    base_noise = torch.randn(base_latents.shape, generator=generator)
    if latents.shape == base_latents.shape and torch.equal(latents, base_latents):
        return noise, noise
    if system.num_tokens != base.num_tokens:
        return noise, base_noise
    rotation = patch_rotation(system.core, base.core, latents, base_latents)
    patches = {"patch_size": system.core.config.patch_size, "base_patch_size": base.core.config.patch_size}
    return noise, couple_noise(rotation, noise, base_noise, **patches)


def block_features(system: LatentDiffusion, noisy: Tensor, sigmas: Tensor, prompt: PromptEmbeds) -> list[Tensor]:
    """(N, tokens, hidden) after the patch embedding and after every block."""
    features: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        features.append(output.float())

    handles = [m.register_forward_hook(keep) for m in (system.core.patch_embed, *system.core.transformer_blocks)]
    try:
        with core_at_work(system):
            system.velocity(noisy, sigmas, prompt)
    finally:
        for handle in handles:
            handle.remove()
    return features


def _relative(features: Tensor, base_features: Tensor) -> float:
    if features.shape[1] != base_features.shape[1]:
        coarse = min(features.shape[1], base_features.shape[1])
        features, base_features = (_pool(t, coarse) for t in (features, base_features))
    return ((features - base_features).square().sum() / base_features.square().sum()).item()


def _pool(features: Tensor, tokens: int) -> Tensor:
    side, goal = int(features.shape[1] ** 0.5), int(tokens**0.5)
    grid = features.transpose(1, 2).unflatten(2, (side, side))
    return F.adaptive_avg_pool2d(grid, goal).flatten(2).transpose(1, 2)
