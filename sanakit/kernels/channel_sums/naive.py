"""Specification: sum of x_p and of x_p x_p^T over positions p, in float64."""

from torch import Tensor


def channel_sums(latents: Tensor, per_image: bool) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> (C), (C, C), or (N, C), (N, C, C)."""
    rows = latents.double().flatten(2) if per_image else latents.double().transpose(0, 1).flatten(1)  # (..., C, P)
    return rows.sum(-1), rows @ rows.mT
