"""Diffusability panel: how easily a latent space can be modelled, measured with no diffusion training.

Each row says what it is worth; none of them gates. Correlations with generation quality as their sources give them:
VIV and neighbour consistency arXiv 2606.03578, interpolated FID arXiv 2603.05630, spectra and equivariance weaker.
Simplifications: images here have no classes, so VIV takes k-means clusters of the latents and neighbour consistency
takes the nearest images of the packaged EffLite0 features; interpolated FID is the KID of the same features. All of
them depend on how many images they see: compare two VAEs on the same ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.fft import dctn
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn import functional as F

from sanakit.errors import SanakitError
from sanakit.evaluation.metrics.distances import kernel_distance
from sanakit.evaluation.perceptual import features
from sanakit.ranks.sharing import shared_chunks
from sanakit.vaes import VAE

CLUSTERS = 8
NEIGHBOURS = 5
DECODED = 128
FEWEST = 16  # images


def panel(vae: VAE, images: Tensor, latents: Tensor) -> list[dict[str, Any]]:
    """Rows {metric, value, better, worth}; images (N, 3, H, W) in [-1, 1], latents (N, C, h, w) normalised.

    Raises SK0403 for fewer than FEWEST images, SK0204 for latents that are not finite.
    """
    if len(images) < FEWEST:
        raise SanakitError("SK0403", f"{len(images)} images, the diffusability panel needs at least {FEWEST}")
    if not latents.isfinite().all():
        channel = int((~latents.isfinite()).sum((0, 2, 3)).argmax())
        raise SanakitError("SK0204", f"latents of {vae.name} are not finite, most in channel {channel}")
    semantic = _pooled(images)
    rows = [
        ("VIV, sum of latent spreads within clusters", viv(latents), "lower", "|r| .87 with gFID, at equal size only"),
        ("spectrum KL, latents to images", spectrum_kl(latents, images), "lower", "weaker"),
        ("share of power at high frequencies", high_frequency_share(latents), "lower", "weaker"),
        ("equivariance error, mirrored", equivariance(vae, images[:64], lambda t: t.flip(-1)), "lower", "lowest"),
        ("equivariance error, a quarter turn", equivariance(vae, images[:64], _turned), "lower", "lowest"),
        ("equivariance error, half size", equivariance(vae, images[:64], _half), "lower", "lowest"),
    ]
    if semantic is not None:
        consistency = neighbour_consistency(latents, semantic)
        rows.insert(1, ("neighbour consistency", consistency, "higher", "R2 .91 in a linear fit with VIV"))
        interpolated = interpolated_kid(vae, images[:DECODED], latents[:DECODED])
        rows.insert(2, ("interpolated EffLite0-KID", interpolated, "lower", ".88 to .90 over 14 VAEs"))
    return [
        {"metric": metric, "value": float(value), "better": better, "worth": worth}
        for metric, value, better, worth in rows
        if value is not None
    ]


def compare_panels(base: VAE | None, candidate: VAE, images: Tensor) -> list[dict[str, Any]]:
    """Both sides' panels as rows of component.json, none without a base; no side is better where their latents are of
    different size and the figure depends on it."""
    if base is None:
        return []
    latents = [shared_chunks(images, 32, vae.encode) for vae in (base, candidate)]
    second = panel(candidate, images, latents[1])
    known = {row["metric"]: row["value"] for row in panel(base, images, latents[0])}
    same = latents[0].shape == latents[1].shape
    return [
        {
            "metric": f"{row['metric']} ({row['worth']})",
            "unit": "",
            "base": known.get(row["metric"]),
            "candidate": row["value"],
            "better": row["better"] if same or not row["metric"].startswith("VIV") else "",
        }
        for row in second
        if row["metric"] in known
    ]


def viv(latents: Tensor) -> float:
    """Velocity irreducible variance: (pi/2) sum of square roots of covariance eigenvalues within k-means clusters, mean
    over clusters by size. For a Gaussian of variance l, l / ((1 - t)^2 l + t^2) integrates to (pi/2) sqrt(l)."""
    z = latents - latents.mean((0, 2, 3), keepdim=True)
    rows = (z / z.std((0, 2, 3), keepdim=True).clamp_min(1e-6)).flatten(1).double().numpy()
    clusters = max(1, min(CLUSTERS, len(rows) // 16, len(np.unique(rows, axis=0))))
    labels = KMeans(clusters, n_init=1, random_state=0).fit_predict(rows)
    total = 0.0
    for label in range(clusters):
        class_rows = rows[labels == label]
        if len(class_rows) > 1:
            spreads = np.linalg.svd(class_rows - class_rows.mean(0), compute_uv=False) / np.sqrt(len(class_rows) - 1)
            total += len(class_rows) / len(rows) * spreads.sum()
    return float(np.pi / 2 * total)


def neighbour_consistency(latents: Tensor, semantic: Tensor) -> float:
    """Share of an image's nearest latents that are also among its nearest images by semantic features (N, D)."""
    near = [
        NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(rows).kneighbors(return_distance=False)[:, :NEIGHBOURS]
        for rows in (latents.flatten(1).numpy(), F.normalize(semantic, dim=1).numpy())
    ]
    return float(np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(*near, strict=True)]))


def interpolated_kid(vae: VAE, images: Tensor, latents: Tensor) -> float | None:
    """KID between images and decoded slerps half-way to every latent's nearest neighbour."""
    rows = latents.flatten(1)
    nearest = NearestNeighbors(n_neighbors=1).fit(rows.numpy()).kneighbors(return_distance=False)[:, 0]
    middle = slerp(rows, rows[torch.from_numpy(nearest)]).unflatten(1, latents.shape[1:])
    return kid(shared_chunks(middle, 32, vae.decode), images)


def slerp(first: Tensor, second: Tensor, share: float = 0.5) -> Tensor:
    """Spherical interpolation of rows (N, D); falls back to the straight line where they are parallel."""
    cosine = F.cosine_similarity(first, second, dim=1, eps=1e-8).clamp(-1, 1)[:, None]
    angle = cosine.arccos()
    weights = torch.sin((1 - share) * angle), torch.sin(share * angle)
    curved = (weights[0] * first + weights[1] * second) / torch.sin(angle).clamp_min(1e-6)
    return torch.where(angle < 1e-3, torch.lerp(first, second, share), curved)


def kid(generated: Tensor, real: Tensor) -> float | None:
    """EffLite0-KID of images in [-1, 1], all of them at once; None without the feature package."""
    samples, reference = _pooled(generated.clamp(-1, 1)), _pooled(real)
    if samples is None or reference is None:
        return None
    return kernel_distance(samples, reference)(np.full(len(samples), 1 / len(samples)))


def spectrum_kl(latents: Tensor, images: Tensor) -> float:
    """KL between radial DCT power distributions of latents and of the images at the latents' size."""
    small = F.interpolate(images, size=latents.shape[-2:], mode="area")
    latent_power, image_power = radial_power(latents), radial_power(small)
    return float((latent_power * np.log(latent_power / image_power)).sum())


def radial_power(maps: Tensor) -> np.ndarray:
    """(N, C, h, w) -> share of DCT power by radius, the mean of every map left out."""
    power = (dctn(maps.double().numpy(), axes=(2, 3), norm="ortho") ** 2).mean((0, 1))
    radius = np.hypot(*np.meshgrid(*(np.arange(n) / n for n in power.shape), indexing="ij"))
    bins = np.minimum((radius * min(power.shape)).astype(int), min(power.shape) - 1).ravel()
    share = np.bincount(bins, power.ravel(), minlength=min(power.shape))[1:] + 1e-12
    return share / share.sum()


def high_frequency_share(latents: Tensor) -> float:
    """Share of the radial DCT power in the upper half of the radii (SEC)."""
    power = radial_power(latents)
    return float(power[len(power) // 2 :].sum())


def equivariance(vae: VAE, images: Tensor, transform: Callable[[Tensor], Tensor]) -> float | None:
    """|E(T x) - T E(x)|^2 / |T E(x)|^2; None where the transformed size does not fit the VAE, or latents are zero."""
    moved = transform(images)
    if not takes(vae, moved.shape[-2:]):
        return None
    target = transform(vae.encode(images))
    power = target.square().sum()
    return ((vae.encode(moved) - target).square().sum() / power).item() if power > 0 else None


def takes(vae: VAE, size: Sequence[int]) -> bool:
    """Whether the VAE encodes images of this height and width."""
    if vae.fixed_image_size:
        return all(side == vae.fixed_image_size for side in size)
    return not any(side % vae.spec.spatial_compression_ratio for side in size)


def _half(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=0.5, mode="area")


def _turned(maps: Tensor) -> Tensor:
    return maps.rot90(1, (-2, -1))


def _pooled(images: Tensor) -> Tensor | None:
    parts = [features(chunk) for chunk in images.split(64)]
    return None if parts[0] is None else torch.cat([part.mean((2, 3)) for part in parts if part is not None])
