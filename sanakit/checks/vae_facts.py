"""What hints of a VAE's gates need beside the gates' own evidence: statistics, precision, and what crosses a border."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sanakit.vaes import VAE

SEEN = 4  # images on which a border is tried
SUSPECT = 1.3  # a seam ratio from which its border is tried; the gate's threshold is above


@torch.no_grad()
def hint_facts(vae: VAE, images: Tensor, raw: Tensor, seam: float, place: str) -> dict[str, Any]:
    """images (N, 3, H, W), raw (N, C, h, w), the seam ratio and the place of the worst border (`row 48`).

    stated_stats, measured_stats: mean and std by channel. nonfinite_weights, vae_precision. seam_crossing: whether a
    value beyond the worst border is felt on its near side: "none" (there it is not, elsewhere it is: a tile ends
    there), "never" (at no border), "all"; None where it was not tried.
    """
    weights = list(vae.model.parameters()) + list(vae.model.buffers())
    floating = [w for w in weights if w.is_floating_point()]
    return {
        "stated_stats": (vae.latents_mean.flatten().tolist(), vae.latents_std.flatten().tolist()),
        "measured_stats": (raw.mean((0, 2, 3)).tolist(), raw.std((0, 2, 3)).tolist()),
        "nonfinite_weights": sum(int((~w.isfinite()).sum()) for w in floating),
        "vae_precision": str(floating[0].dtype).removeprefix("torch.") if floating else "",
        "seam_crossing": seam_crossing(vae, images[:SEEN], raw[:SEEN], place) if seam > SUSPECT else None,
    }


def seam_crossing(vae: VAE, images: Tensor, raw: Tensor, place: str) -> str:
    """Encoder and decoder are tried at the border and at the others of that direction: the far side is turned to its
    negative, and the last cells of the near side are compared. See `hint_facts`."""
    direction, _, pixel = place.partition(" ")
    dim, ratio = (2 if direction == "row" else 3), vae.spec.spatial_compression_ratio
    worst = int(pixel) // ratio
    others = [cell for cell in range(1, raw.shape[dim]) if abs(cell - worst) > 1][:3]
    felt = [
        {cell: _felt(run, x, step * cell, dim, width) for cell in [worst, *others]}
        for run, x, step, width in ((vae.decode_raw, raw, 1, ratio), (vae.encode_raw, images, ratio, 1))
    ]
    if any(not side[worst] and any(side[cell] for cell in others) for side in felt):
        return "none"
    return "all" if any(any(side.values()) for side in felt) else "never"


def _felt(run: Callable[[Tensor], Tensor], x: Tensor, start: int, dim: int, width: int) -> bool:
    """Whether negating x from `start` on changes the output's last `width` lines before that place."""
    near, far = x[:, :, :start] if dim == 2 else x[..., :start], x[:, :, start:] if dim == 2 else x[..., start:]
    before, after = run(x), run(torch.cat([near, -far], dim))
    end = start * before.shape[dim] // x.shape[dim]
    lines = slice(end - width, end)
    change = (after - before)[:, :, lines] if dim == 2 else (after - before)[..., lines]
    return float(change.abs().max()) > 1e-5 * float(before.abs().max().clamp_min(1e-12))
