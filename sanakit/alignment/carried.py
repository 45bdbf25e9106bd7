"""Directions of a candidate that the base has no values for, carried through the base's stream (nested start, after
DA-VAE, arXiv 2603.22125).

A candidate with more values a token than the base has directions that no base value stands for: the closed form of the
patch embedding does not read them, and DA-VAE starts them at zero. Half of what a velocity holds along them is then
lost: the noise, which the noisy latents show. Here each of these directions enters the residual stream along a
direction of its own, chosen among those in which the base's blocks write and read least, as strongly as the base's own
values enter. The output projection is solved afterwards, on features that hold them.
"""

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor
from torch.nn import functional as F

from sanakit.alignment.coupling import patch_rotation
from sanakit.assembly import LatentDiffusion, core_at_work
from sanakit.data.dataset import LatentDataset
from sanakit.flow import interpolate, sample_sigmas

STRENGTH = 1.0  # times the mean length with which a value of the base enters its stream
SHARE = 4  # at most one in so many directions of the stream is taken
DRAWS = 512
CHUNK = 128


def carry_rest(
    core: SanaTransformer2DModel,
    base: LatentDiffusion,
    data: LatentDataset,
    base_data: LatentDataset,
    *,
    count: int | None = None,
    seed: int = 0,
) -> dict[str, object]:
    """Add to `core.patch_embed`, which is aligned already, what carries the candidate's other directions; returns
    {"carried": how many}, nothing where there are none.

    data, base_data: the same images in both latent spaces, the first `count` of them. Nothing changes where the base
    has as many values a token, where the rest would take more than a SHARE-th of the stream, and in a patch embedding
    that reads its neighbours too (it is solved with what they say).
    """
    proj, theirs = core.patch_embed.proj, base.core.patch_embed.proj
    values, known = (layer.in_channels * layer.stride[0] * layer.stride[1] for layer in (proj, theirs))
    rest = values - known
    if rest <= 0 or rest > proj.out_channels // SHARE or proj.kernel_size != proj.stride:
        return {}
    options = {} if count is None else {"count": count}
    rotation = patch_rotation(core, base.core, data.latents, base_data.latents, **options)
    others = (
        torch.linalg.qr(rotation.double().mT, mode="complete").Q[:, known:].float()
    )  # (D, rest), unread by the rotation
    entries = quiet_directions(base, base_data, rest, seed=seed)  # (H, rest)
    strength = STRENGTH * float(theirs.weight.detach().flatten(1).norm(dim=0).mean())
    with torch.no_grad():
        proj.weight += (strength * entries @ others.mT).reshape(proj.weight.shape).to(proj.weight)
    return {"carried": rest}


def quiet_directions(base: LatentDiffusion, data: LatentDataset, count: int, *, seed: int = 0) -> Tensor:
    """Orthonormal directions of the base's stream (H, count) in which it varies least before the output projection and
    which its layers weigh least; none along the mean, which the norms take away."""
    varies = stream_covariance(base, data, seed=seed)
    cost = varies / varies.diagonal().mean() + read_strength(base.core)
    mean = torch.full((len(cost), 1), len(cost) ** -0.5, dtype=torch.float64)
    _, directions = torch.linalg.eigh(cost + cost.trace() * mean @ mean.mT)
    return directions[:, :count].float()


def read_strength(core: SanaTransformer2DModel) -> Tensor:
    """How much the first layers of all blocks weigh each direction of the stream, as a quadratic form (H, H) of mean
    diagonal 1."""
    total = torch.zeros(core.proj_out.in_features, core.proj_out.in_features, dtype=torch.float64)
    layers = 0
    for block in core.transformer_blocks:
        for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v, block.attn2.to_q, block.ff.conv_inverted):
            weight = layer.weight.detach().double().flatten(1)
            total += (weight.mT @ weight).cpu() * (weight.shape[1] / weight.square().sum().cpu())
            layers += 1
    return total / layers


def stream_covariance(base: LatentDiffusion, data: LatentDataset, *, seed: int = 0) -> Tensor:
    """Of the normed stream before the output projection, over DRAWS images, sigmas and noise (H, H)."""
    core, width = base.core, base.core.proj_out.in_features
    streams: list[Tensor] = []
    handle = core.norm_out.register_forward_pre_hook(lambda module, inputs: streams.append(inputs[0].float().cpu()))
    generator = torch.Generator().manual_seed(seed)
    total, mean = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    seen = 0
    try:
        with core_at_work(base, exact=True):
            for start in range(0, DRAWS, CHUNK):
                indices = torch.arange(start, start + CHUNK) % len(data)
                latents = data.latents[indices, 0]
                noise = torch.randn(latents.shape, generator=generator)
                sigmas = sample_sigmas(len(indices), shift=float(base.flow_shift or 1.0), generator=generator)
                prompt = data.prompts(indices, torch.ones_like(indices))
                base.velocity(interpolate(latents, noise, sigmas), sigmas, prompt)
                normed = F.layer_norm(streams.pop().flatten(0, 1), (width,)).double()
                total += normed.mT @ normed
                mean += normed.sum(0)
                seen += len(normed)
    finally:
        handle.remove()
    mean /= seen
    return total / seen - torch.outer(mean, mean)
