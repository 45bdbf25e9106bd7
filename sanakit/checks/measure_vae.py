"""What gates of stage component read of a VAE: pure measurements, no threshold."""

import itertools
from typing import Any

import torch
from torch import Tensor

from sanakit.checks.vae_facts import hint_facts
from sanakit.contracts import LatentSpec
from sanakit.evaluation.reconstruction import psnr
from sanakit.vaes import VAE

REPEATED = 16  # images that are encoded twice
CHUNK = 16
CLOSEST = 4  # pixels between two borders: the steps around one are up to two pixels away


def measured_spec(vae: VAE, size: int) -> LatentSpec:
    """Geometry from one image, whatever the record says."""
    with torch.no_grad():
        raw = vae._encode(vae.placed(torch.zeros(1, 3, size, size)))
    return LatentSpec(latent_channels=raw.shape[1], spatial_compression_ratio=size // raw.shape[-1])


def vae_evidence(vae: VAE, images: Tensor) -> dict[str, Any]:
    """Everything that the gates read, from images (N, 3, H, W) in [-1, 1] at the training size."""
    spec = measured_spec(vae, images.shape[-1])
    if spec != vae.spec:
        return {"measured_spec": spec, "declared_spec": vae.spec}
    raw = torch.cat([vae.encode_raw(chunk) for chunk in images.split(CHUNK)])
    reconstructed = torch.cat([vae.decode_raw(chunk) for chunk in raw.split(CHUNK)])
    return evidence_of(vae, images, raw, reconstructed)


@torch.no_grad()
def evidence_of(vae: VAE, images: Tensor, raw: Tensor, reconstructed: Tensor) -> dict[str, Any]:
    """The evidence from encodings that were made already: raw (N, C, h, w), reconstructed (N, 3, H, W)."""
    latents = vae.normalize(raw)
    image_psnr = psnr(images, reconstructed)
    std = latents.std((0, 2, 3))
    mean = images.mean((1, 2, 3), keepdim=True), reconstructed.mean((1, 2, 3), keepdim=True)
    covariance = ((images - mean[0]) * (reconstructed - mean[1])).mean((1, 2, 3))
    variance = (reconstructed - mean[1]).square().mean((1, 2, 3))
    power = (images - mean[0]).square().mean((1, 2, 3))
    back = vae.denormalize(latents)
    centred = latents - latents.mean((0, 2, 3), keepdim=True)
    seam, place = seam_ratio(images, reconstructed, vae.spec.spatial_compression_ratio) or (None, "")
    flat = images.mean((2, 3), keepdim=True).expand_as(images)
    evidence: dict[str, Any] = {
        "measured_spec": vae.spec,
        "declared_spec": vae.spec,
        "nonfinite_latents": int((~raw.isfinite()).sum() + (~reconstructed.isfinite()).sum()),
        "latent_repeat_difference": _relative(vae.encode_raw(images[:REPEATED]), raw[:REPEATED]),
        "normalisation_error": _relative(back, raw),
        "image_covariance": covariance.numpy(),
        "reconstruction_variance": variance.numpy(),
        "affine_r2": float(covariance.sum() ** 2 / (variance.sum() * power.sum()).clamp_min(1e-12)),
        "psnr": image_psnr,
        "psnr_of_mean_colour": psnr(images, flat),
        "channel_order_psnr": {
            "".join("RGB"[i] for i in order): psnr(images, reconstructed[:, list(order)])
            for order in itertools.permutations(range(3))
            if order != (0, 1, 2)
        },
        "orientation_psnr": {name: psnr(images, turned) for name, turned in orientations(reconstructed).items()},
        "latent_power": centred.square().mean((1, 2, 3)).numpy(),
        "raw_std": float(raw.std()),
        "channel_std": std.numpy(),
        "channel_means": (latents.mean((2, 3)) / std.clamp_min(1e-6)).numpy(),
        "effective_channels": effective_channels(latents),
    }
    if seam is not None:
        evidence |= {"seam_ratio": seam, "seam_place": place}
    return evidence | hint_facts(vae, images, raw, 1.0 if seam is None else seam, place)


def orientations(maps: Tensor) -> dict[str, Tensor]:
    """The seven other ways to lay square images (B, C, H, H)."""
    named = {}
    for turns, mirrored in itertools.product(range(4), (False, True)):
        name = " and ".join([f"turned by {90 * turns} degrees"] * bool(turns) + ["mirrored"] * mirrored)
        if name:
            turned = torch.rot90(maps, turns, (2, 3))
            named[name] = turned.flip(-1) if mirrored else turned
    return named


def seam_ratio(images: Tensor, reconstructed: Tensor, ratio: int) -> tuple[float, str] | None:
    """How much the reconstruction error jumps at the worst border of the latent grid: its jump over the median
    border's, and where that border lies; None with fewer than four borders, or where borders are too close.

    A border where the images themselves jump (icons that are framed alike) has a large error without any seam, so an
    error's jump is counted in units of the images' own.
    """
    if ratio < CLOSEST or sum(len(borders(side, ratio)) for side in images.shape[2:]) < 4:
        return None
    error = border_jumps(reconstructed - images, ratio)
    values = error / border_jumps(images, ratio).clamp_min(1)
    places = [f"{label} {b}" for label, side in (("row", 2), ("column", 3)) for b in borders(images.shape[side], ratio)]
    return float(values.max() / values.median().clamp_min(1e-9)), places[int(values.argmax())]


def border_jumps(maps: Tensor, ratio: int) -> Tensor:
    """Mean absolute step across each border of the grid over the mean of the steps up to two pixels around it: first
    the borders between rows, then those between columns. maps (N, C, H, W)."""
    jumps = []
    for dim in (2, 3):
        lines = maps.movedim(dim, 3)
        steps = (lines[..., 1:] - lines[..., :-1]).abs().mean((0, 1, 2))  # steps[i]: from i to i + 1
        places = torch.tensor(list(borders(lines.shape[3], ratio)), dtype=torch.long)
        around = torch.stack([steps[places - 1 + k] for k in (-2, -1, 1, 2)]).mean(0)
        jumps.append(steps[places - 1] / around.clamp_min(1e-9))
    return torch.cat(jumps)


def borders(side: int, ratio: int) -> range:
    return range(ratio, side, ratio)


def effective_channels(latents: Tensor) -> float:
    """exp(entropy) of the eigenvalues of the channels' correlation over their count: 1 independent, 1/C all alike."""
    rows = latents.permute(1, 0, 2, 3).flatten(1).double()
    if not rows.isfinite().all():
        return float("nan")
    rows = rows - rows.mean(1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    share = torch.linalg.eigvalsh(rows @ rows.T).clamp_min(0)
    share = share / share.sum().clamp_min(1e-12)
    return float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum()) / len(share))


def _relative(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm().clamp_min(1e-9))
