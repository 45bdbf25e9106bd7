"""Closed-form alignment of a core to another VAE (DC-Gen, arXiv 2509.25180, trains this step; here it is solved).

Input: the new patch embedding is W_base R, where R maps candidate patches to base patches:
- `procrustes`: R semi-orthogonal, keeps noise isotropic;
- `ridge`: least squares of clean patches (DC-Gen's first step), distorts noise;
- `independent`: least squares of patches noised independently over the sigma distribution, shrinks noise;
- `coupled`: least squares where the base's noise is the Procrustes image of the candidate's;
- `blend`: the same with the noise weighed BLEND times: right where either of its ends is (docs/alignment.md).
Output: the head is the ridge solution of the velocity on the core's frozen last features.
"""

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor
from torch.nn import functional as F

from sanakit.alignment.moments import CrossMoments
from sanakit.assembly import LatentDiffusion, evaluating
from sanakit.data.cache import LatentDataset
from sanakit.errors import SanakitError, did_you_mean
from sanakit.flow import interpolate, noise_power_ratio, sample_sigmas

INPUT_METHODS = ("procrustes", "ridge", "independent", "coupled", "blend")
BLEND = 3.0  # measured by experiments/alignment_study.py: between clean regression (0) and Procrustes (without bound)


def patch_rows(latents: Tensor, patch_size: int) -> Tensor:
    """(B, C, h, w) -> (B, C p p, h/p, w/p), channels in the order of the patch embedding's kernel."""
    return F.pixel_unshuffle(latents, patch_size) if patch_size > 1 else latents


def align_input(
    core: SanaTransformer2DModel,
    base_core: SanaTransformer2DModel,
    latents: Tensor,
    base_latents: Tensor,
    *,
    method: str = "blend",
    flow_shift: float = 1.0,
) -> float:
    """Set `core.patch_embed` from paired latents (N, C, h, w) of the same pictures; returns the R^2 of the map.

    A coarser candidate grid is matched by average-pooling the base's patches; a finer one by repeating them.
    """
    rows, goals = paired_patches(core, base_core, latents, base_latents)
    moments = CrossMoments.empty(rows.shape[1], goals.shape[1])
    for x, y in zip(rows.split(8192), goals.split(8192), strict=True):
        moments.add(x, y)
    mapping, offset = solve_input(moments, method, flow_shift)

    base_weight = base_core.patch_embed.proj.weight.flatten(1)  # (hidden, base patch)
    with torch.no_grad():
        weight = base_weight @ mapping
        core.patch_embed.proj.weight.copy_(weight.reshape(core.patch_embed.proj.weight.shape))
        core.patch_embed.proj.bias.copy_(base_core.patch_embed.proj.bias + base_weight @ offset)
    predicted = rows @ mapping.T + offset
    return 1 - ((goals - predicted).square().sum() / (goals - goals.mean(0)).square().sum()).item()


def paired_patches(
    core: SanaTransformer2DModel, base_core: SanaTransformer2DModel, latents: Tensor, base_latents: Tensor
) -> tuple[Tensor, Tensor]:
    """Candidate patches (T, D) and the base's (T, E) at the same places, T = pictures x candidate tokens."""
    own = patch_rows(latents, core.config.patch_size)
    target = patch_rows(base_latents, base_core.config.patch_size)
    if target.shape[-1] > own.shape[-1]:
        target = F.adaptive_avg_pool2d(target, own.shape[-2:])
    elif target.shape[-1] < own.shape[-1]:
        target = F.interpolate(target, size=own.shape[-2:], mode="nearest")
    rows, goals = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (own, target))
    return rows, goals


def solve_input(moments: CrossMoments, method: str, flow_shift: float = 1.0) -> tuple[Tensor, Tensor]:
    """R (E, D) and offset (E) of one of INPUT_METHODS."""
    if method not in INPUT_METHODS:
        raise SanakitError("SK0104", f"no input method {method!r}{did_you_mean(method, list(INPUT_METHODS))}")
    if method == "procrustes":
        return moments.procrustes()
    if method == "ridge":
        return moments.ridge()
    ratio = noise_power_ratio(flow_shift) * (BLEND if method == "blend" else 1.0)
    return moments.noisy(ratio, None if method == "independent" else moments.procrustes()[0])


def align_output(
    system: LatentDiffusion, data: LatentDataset, *, count: int = 2048, batch_size: int = 128, seed: int = 0
) -> None:
    """Set the head to the ridge solution of the velocity on frozen features; one forward pass over `count` draws."""
    core, patch = system.core, system.core.config.patch_size
    moments = CrossMoments.empty(core.proj_out.in_features, core.proj_out.out_features)
    features: list[Tensor] = []
    handle = core.proj_out.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    generator = torch.Generator().manual_seed(seed)
    try:
        with evaluating(core):
            for start in range(0, count, batch_size):
                indices = torch.arange(start, min(start + batch_size, count)) % len(data)
                latents = data.latents[indices, 0]
                noise = torch.randn(latents.shape, generator=generator)
                sigmas = sample_sigmas(len(indices), shift=float(system.flow_shift or 1.0), generator=generator)
                prompt = data.prompts(indices, torch.randint(1 << 30, (len(indices),), generator=generator))
                system.velocity(interpolate(latents, noise, sigmas), sigmas, prompt)
                moments.add(features.pop().flatten(0, 1), head_rows(noise - latents, patch).flatten(0, 1))
    finally:
        handle.remove()
    weight, bias = moments.ridge(penalty=1e-3)
    with torch.no_grad():
        core.proj_out.weight.copy_(weight)
        core.proj_out.bias.copy_(bias)


def head_rows(velocity: Tensor, patch_size: int) -> Tensor:
    """(B, C, h, w) -> (B, tokens, p p C), the order in which the core's head writes: the inverse of its unpatchify."""
    batch, channels, height, width = velocity.shape
    p = patch_size
    grid = velocity.reshape(batch, channels, height // p, p, width // p, p)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, (height // p) * (width // p), p * p * channels)
