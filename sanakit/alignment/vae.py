"""Closed-form alignment of a core to another VAE (DC-Gen, arXiv 2509.25180, trains this step; here it is solved).

Input: the new patch embedding is W_base R, where R maps candidate patches to base patches:
- `procrustes`: R semi-orthogonal, keeps noise isotropic;
- `ridge`: least squares of clean patches (DC-Gen's first step), distorts noise;
- `independent`: least squares of patches noised independently over the sigma distribution, shrinks noise;
- `coupled`: least squares where the base's noise is the Procrustes image of the candidate's;
- `blend`: the same with the noise weighed BLEND times: right where either of its ends is (docs/alignment.md).
A patch embedding that reads the neighbours too (adapter `conv-latents`) is solved in the same way.
Output: the head is the ridge solution of the velocity on the core's frozen last features.
"""

from collections.abc import Iterator

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.alignment.cross_moments import CrossMoments
from sanakit.assembly import LatentDiffusion, core_at_work
from sanakit.data.dataset import LatentDataset
from sanakit.data.store import Rows
from sanakit.errors import SanakitError, did_you_mean
from sanakit.flow import interpolate, noise_power_ratio, sample_sigmas

INPUT_METHODS = ("procrustes", "ridge", "independent", "coupled", "blend")
# between clean regression (0) and Procrustes (without bound), measured by experiments/studies/alignment_study.py
BLEND = 3.0
CHUNK = 256


def patch_rows(latents: Tensor, patch_size: int) -> Tensor:
    """(B, C, h, w) -> (B, C p p, h/p, w/p), channels in the order of the patch embedding's kernel."""
    return F.pixel_unshuffle(latents, patch_size) if patch_size > 1 else latents


def align_input(
    core: SanaTransformer2DModel,
    base_core: SanaTransformer2DModel,
    latents: Tensor | Rows,
    base_latents: Tensor | Rows,
    *,
    method: str = "blend",
    flow_shift: float = 1.0,
    count: int | None = None,
) -> dict[str, object]:
    """Set `core.patch_embed` from paired latents (N, M, C, h, w) or (N, C, h, w) of the same images, the first
    `count` of them and their first view; returns input_r2, and input_note where there is something to say.

    A coarser candidate grid is matched by average-pooling the base's patches; a finer one by repeating them.
    """
    layer, base_layer = core.patch_embed.proj, base_core.patch_embed.proj
    moments = input_moments(layer, base_layer, latent_chunks(latents, count), latent_chunks(base_latents, count))
    mapping, offset = solve_input(moments, method, flow_shift, centre=_centre(layer))
    base_weight = _plain_weight(base_layer)  # (hidden, base patch)
    with torch.no_grad():
        layer.weight.copy_((base_weight @ mapping).reshape(layer.weight.shape))
        layer.bias.copy_(base_layer.bias + base_weight @ offset)
    return {"input_r2": moments.r2(mapping)} | ({"input_note": moments.note} if moments.note else {})


def input_moments(
    layer: nn.Conv2d, base_layer: nn.Conv2d, latents: Iterator[Tensor], base_latents: Iterator[Tensor]
) -> CrossMoments:
    """Of what the candidate's patch embedding reads at a token (D) and the base's patch there (E); one pass."""
    rows = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
    moments = CrossMoments.empty(rows, base_layer.in_channels * base_layer.stride[0] * base_layer.stride[1])
    for first, second in zip(latents, base_latents, strict=True):
        read = F.unfold(first, layer.kernel_size, padding=layer.padding, stride=layer.stride)  # (B, D, T)
        height, width = (side // layer.stride[0] for side in first.shape[-2:])
        goal = _resized(patch_rows(second, base_layer.stride[0]), (height, width))
        moments.add(read.transpose(1, 2).flatten(0, 1), goal.flatten(2).transpose(1, 2).flatten(0, 1))
    return moments


def paired_patches(
    core: SanaTransformer2DModel, base_core: SanaTransformer2DModel, latents: Tensor, base_latents: Tensor
) -> tuple[Tensor, Tensor]:
    """Candidate patches (T, D) and the base's (T, E) at the same places, T = images x candidate tokens."""
    patches = patch_rows(latents, core.config.patch_size)
    target = _resized(patch_rows(base_latents, base_core.config.patch_size), tuple(patches.shape[-2:]))
    rows, goals = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (patches, target))
    return rows, goals


def solve_input(
    moments: CrossMoments, method: str, flow_shift: float = 1.0, centre: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """R (E, D) and offset (E) of one of INPUT_METHODS. centre: which of the D columns lie in the token's own patch."""
    if method not in INPUT_METHODS:
        raise SanakitError("SK0104", f"no input method {method!r}{did_you_mean(method, list(INPUT_METHODS))}")
    if method == "ridge":
        return moments.ridge()
    ratio = noise_power_ratio(flow_shift) * (BLEND if method == "blend" else 1.0)
    if method == "independent":
        return moments.noisy(ratio)
    centre = torch.arange(len(moments.x)) if centre is None else centre
    rotation = torch.zeros(len(moments.y), len(moments.x))
    rotation[:, centre], offset = moments.select(centre).procrustes()
    return (rotation, offset) if method == "procrustes" else moments.noisy(ratio, rotation)


def align_output(
    system: LatentDiffusion, data: LatentDataset, *, count: int = 2048, batch_size: int = 128, seed: int = 0
) -> dict[str, object]:
    """Set the head to the ridge solution of the velocity on frozen features; one forward pass over `count` draws.
    Returns output_note where there is something to say."""
    core, patch = system.core, system.core.config.patch_size
    head = core.proj_out
    read = getattr(head, "read", lambda features: features)  # a head that reads its neighbours too
    moments: CrossMoments | None = None
    features: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, inputs: features.append(read(inputs[0])))
    generator = torch.Generator().manual_seed(seed)
    try:
        with core_at_work(system):
            for start in range(0, count, batch_size):
                indices = torch.arange(start, min(start + batch_size, count)) % len(data)
                latents = data.latents[indices, 0]
                noise = torch.randn(latents.shape, generator=generator)
                sigmas = sample_sigmas(len(indices), shift=float(system.flow_shift or 1.0), generator=generator)
                prompt = data.prompts(indices, torch.randint(1 << 30, (len(indices),), generator=generator))
                system.velocity(interpolate(latents, noise, sigmas), sigmas, prompt)
                rows = features.pop().flatten(0, 1)
                moments = moments or CrossMoments.empty(rows.shape[1], head.out_features)
                moments.add(rows, head_rows(noise - latents, patch).flatten(0, 1))
    finally:
        handle.remove()
    assert moments is not None
    return write_head(head, moments)


@torch.no_grad()
def write_head(head: nn.Linear, moments: CrossMoments) -> dict[str, object]:
    """The ridge solution of what the head reads (`head.read`, where it has one) to the velocity; returns output_note
    where there is something to say."""
    weight, bias = moments.ridge(penalty=1e-3)
    getattr(head, "write", head.weight.copy_)(weight)
    head.bias.copy_(bias)
    return {"output_note": moments.note} if moments.note else {}


def head_rows(velocity: Tensor, patch_size: int) -> Tensor:
    """(B, C, h, w) -> (B, tokens, p p C), the order in which the core's head writes: the inverse of its unpatchify."""
    batch, channels, height, width = velocity.shape
    p = patch_size
    grid = velocity.reshape(batch, channels, height // p, p, width // p, p)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, (height // p) * (width // p), p * p * channels)


def latent_chunks(latents: Tensor | Rows, count: int | None) -> Iterator[Tensor]:
    """First views of the first `count` images, chunk by chunk: (B, C, h, w)."""
    total = len(latents) if count is None else min(count, len(latents))
    for start in range(0, total, CHUNK):
        rows = torch.arange(start, min(start + CHUNK, total))
        yield latents[rows, 0] if len(latents.shape) == 5 else latents[rows]  # type: ignore[index]


def _resized(patches: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Patches (B, E, h, w) averaged to a coarser grid or repeated on a finer one."""
    if patches.shape[-1] > grid[-1]:
        return F.adaptive_avg_pool2d(patches, grid)
    return F.interpolate(patches, size=grid, mode="nearest") if patches.shape[-1] < grid[-1] else patches


def _centre(proj: nn.Conv2d) -> Tensor:
    """Indices of the flattened kernel (C k k) that lie in the token's own patch, in the order of a plain kernel."""
    (side, _), (stride, _), (edge, _) = proj.kernel_size, proj.stride, proj.padding
    index = torch.arange(proj.in_channels * side * side).reshape(proj.in_channels, side, side)
    return index[:, edge : edge + stride, edge : edge + stride].flatten()


def _plain_weight(proj: nn.Conv2d) -> Tensor:
    """(hidden, C p p) of a patch embedding's own patch; what it reads of the neighbours is left out."""
    return proj.weight.detach().flatten(1)[:, _centre(proj)]
