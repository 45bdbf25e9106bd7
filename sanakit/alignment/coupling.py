"""Noise of two latent spaces drawn together, so that two cores see the same image behind the same noise.

Where the candidate's patches see unit Gaussian noise e, the base's see R e + (I - R R^T) e' with R the Procrustes map
of the patches and e' free noise: unit Gaussian again, as R is semi-orthogonal.
"""

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor
from torch.nn import functional as F

from sanakit.alignment.cross_moments import CrossMoments
from sanakit.alignment.vae import latent_chunks, paired_patches
from sanakit.data.store import Rows

ROTATED = 4096  # images that the rotation is solved from


def patch_rotation(
    core: SanaTransformer2DModel,
    base_core: SanaTransformer2DModel,
    latents: Tensor | Rows,
    base_latents: Tensor | Rows,
    *,
    count: int = ROTATED,
) -> Tensor:
    """The Procrustes map R (E, D) of the candidate's patches to the base's, from the same images in both spaces;
    latents (N, M, C, h, w) or (N, C, h, w)."""
    moments: CrossMoments | None = None
    chunks = latent_chunks(latents, count), latent_chunks(base_latents, count)
    for latents_chunk, base_chunk in zip(*chunks, strict=True):
        rows, goals = paired_patches(core, base_core, latents_chunk, base_chunk)
        moments = moments or CrossMoments.empty(rows.shape[1], goals.shape[1])
        moments.add(rows, goals)
    assert moments is not None
    return moments.procrustes()[0]


def couple_noise(rotation: Tensor, noise: Tensor, free: Tensor, *, patch_size: int, base_patch_size: int) -> Tensor:
    """Noise of the base (N, C', h', w') that goes with the candidate's (N, C, h, w), on equal token grids.

    rotation: R (E, D), D = C patch_size^2 and E = C' base_patch_size^2. free: independent noise in the base's shape,
    which fills the directions that the candidate's noise does not reach.
    """
    patches, rest = _to_patches(noise, patch_size), _to_patches(free, base_patch_size)
    kept = torch.einsum("ef,nfhw->nehw", rotation @ rotation.T, rest)
    matched = torch.einsum("ed,ndhw->nehw", rotation, patches) + rest - kept
    return F.pixel_shuffle(matched, base_patch_size) if base_patch_size > 1 else matched


def _to_patches(latents: Tensor, patch_size: int) -> Tensor:
    return F.pixel_unshuffle(latents, patch_size) if patch_size > 1 else latents
