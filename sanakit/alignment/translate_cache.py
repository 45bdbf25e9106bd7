"""A cache of one VAE's latents turned into another's, without reading the images again but for a sample of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanakit import inventory
from sanakit.alignment.translation import Explained, explained, held_out_rows, solve_translation
from sanakit.data.cache import Progress, latent_job, silent, to_images
from sanakit.data.job import Job
from sanakit.data.rows import Rows
from sanakit.data.table import ImageDataset
from sanakit.errors import SanakitError
from sanakit.evaluation.reconstruction import psnr
from sanakit.placement import Placement, host
from sanakit.vaes import VAE
from sanakit.vaes.translated import TranslatedVAE, grid_factors

SAMPLE = 512  # images that both VAEs encode
MIN_R2 = 0.9  # docs/recipes.md: what the map costs in decoded PSNR at this value
CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A solved map and what it is worth. vae: encodes by source and map, decodes by the target.

    psnr_translated, psnr_encoded: of every held-out image, decoded from translated latents and from its own encoding.
    encode_rate: images a second that the target reads and encodes here.
    """

    vae: TranslatedVAE
    explained: Explained
    psnr_translated: np.ndarray
    psnr_encoded: np.ndarray
    encode_rate: float
    seconds: float  # that encoding the sample, solving and evaluating took


def cached_facts(root: Path, source: VAE, image_size: int | None = None) -> dict[str, Any]:
    """The facts of the cached squares of this VAE below `root`, those with mirrored images before those without.
    Raises SK0404 where there are none, and SK0104 where there are several sizes and none is named."""
    encoder, latents = source.fingerprint(), inventory.entries(root, "latents")
    squares = [e.facts for e in latents if e.facts["encoder"] == encoder and isinstance(e.facts["size"], int)]
    chosen = [facts for facts in squares if image_size in (None, facts["size"])]
    if not chosen:
        sizes = ", ".join(str(facts["size"]) for facts in squares) or "none"
        raise SanakitError(
            "SK0404",
            f"{root} holds no squares of {source.name}{f' of {image_size} px' if image_size else ''}; "
            f"sizes of this VAE: {sizes}; entries of latents of any VAE: {len(latents)}",
            cause="The cache was filled with another VAE, or in aspect buckets only.",
            fix="Name the VAE that filled it with --from, or fill it: sanakit encode --vae VAE --out CACHE.",
        )
    if len({facts["size"] for facts in chosen}) > 1:
        sizes = ", ".join(str(facts["size"]) for facts in chosen)
        raise SanakitError("SK0104", f"{root} holds squares of {sizes} px", fix="Name one with --image-size.")
    return max(chosen, key=lambda facts: bool(facts["mirror"]))


def cached_latents(
    root: Path, source: VAE, dataset: ImageDataset, facts: dict[str, Any], placement: Placement | None = None
) -> tuple[Job, dict[str, Rows]]:
    """The job of these facts, and its rows as they lie in the cache. Raises SK0404 where an image is not in it."""
    job = latent_job(source, dataset, facts["size"], mirror=facts["mirror"], placement=placement)
    return job, job.run(root, must_exist=True)[1]


def fit_translation(
    source: VAE,
    target: VAE,
    dataset: ImageDataset,
    cached: Rows,
    size: int,
    *,
    num_images: int = SAMPLE,
    seed: int = 0,
    failed: Rows | None = None,
    progress: Progress = silent,
    placement: Placement | None = None,
) -> Translation:
    """Encode a random sample of the images with the target, solve the map from most of them and evaluate it on the
    others. cached: raw latents (N, M, C, h, w) of the source. failed: (N,) bool, images that could not be read. Raises
    SK0219 and SK0403, or what the VAEs raise."""
    placement, start = placement or host(), time.perf_counter()
    grid_factors(source.spec, target.spec)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    readable = order if failed is None else order[~failed[order]]
    chosen = readable[:num_images].sort().values
    held = held_out_rows(len(chosen))
    raw_source = cached[chosen, 0].float()
    with placement.holding(target):
        raw_target, rate = _encoded(target, dataset, chosen.tolist(), size, progress)
    latent_map = solve_translation(source, target, raw_source[~held], raw_target[~held])
    quality = explained(latent_map, target, raw_source[held], raw_target[held])
    vae = TranslatedVAE(source, latent_map, target)
    with placement.holding(target):
        images = to_images(dataset.subset(chosen[held].tolist()).pixels(size))
        translated = _psnr_of(target, images, latent_map(raw_source[held]))
        encoded = _psnr_of(target, images, raw_target[held])
    return Translation(
        vae=vae,
        explained=quality,
        psnr_translated=translated,
        psnr_encoded=encoded,
        encode_rate=rate,
        seconds=time.perf_counter() - start,
    )


def require_explained(translation: Translation, min_r2: float = MIN_R2) -> None:
    """Raises SK0218 where the interval of R2 does not lie above `min_r2`."""
    r2 = translation.explained
    if not r2.low >= min_r2:
        lost = float((translation.psnr_encoded - translation.psnr_translated).mean())
        raise SanakitError(
            "SK0218",
            f"the map explains {r2.r2:.3f} of the target's latents (95% interval {r2.low:.3f} to {r2.high:.3f}, "
            f"{r2.images} held-out images), at least {min_r2:g} expected; decoded images lose {lost:.1f} dB",
        )


@torch.no_grad()
def translated_job(
    job: Job, cached: dict[str, Rows], vae: TranslatedVAE, dataset: ImageDataset, facts: dict[str, Any]
) -> Job:
    """What fills the entry of the translated latents: the key is that of `vae`, so whatever trains with it finds the
    entry and checks it against its own encoding. The posterior's standard deviation is not translated."""
    mine = latent_job(vae, dataset, facts["size"], mirror=facts["mirror"], like=job)
    kept = [name for name in cached if name not in ("raw_latents", "raw_std")]

    @torch.no_grad()
    def compute(part: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(part)
        latents = cached["raw_latents"][rows].float()
        flat = torch.cat([vae.model.map(few) for few in latents.flatten(0, 1).split(8 * CHUNK)])
        tensors = {name: cached[name][rows] for name in kept}
        raw = flat.unflatten(0, latents.shape[:2])
        if "failed" in tensors:  # images that could not be read: their latents are zero
            raw[tensors["failed"]] = 0
        return tensors | {"raw_latents": raw}

    # the precision of the cached latents is that of the translated ones
    stated = {key: value for key, value in facts.items() if key == "compute"}
    encoder = {"encoder": vae.fingerprint()}
    return replace(
        mine, facts={k: v for k, v in mine.facts.items() if k != "compute"} | stated | encoder, compute=compute
    )


def _encoded(vae: VAE, dataset: ImageDataset, rows: list[int], size: int, progress: Progress) -> tuple[Tensor, float]:
    """Raw latents of some images, and images a second with reading them; the first chunk warms up and is not timed."""
    parts, seconds = [], 0.0
    for first in range(0, len(rows), CHUNK):
        start = time.perf_counter()
        parts.append(vae.encode_raw(to_images(dataset.subset(rows[first : first + CHUNK]).pixels(size))))
        seconds += time.perf_counter() - start if first or len(rows) <= CHUNK else 0.0
        progress(f"encoding a sample with {vae.name or 'the VAE'}", min(first + CHUNK, len(rows)), len(rows))
    timed = len(rows) - CHUNK if len(rows) > CHUNK else len(rows)
    return torch.cat(parts), timed / max(seconds, 1e-9)


@torch.no_grad()
def _psnr_of(vae: VAE, images: Tensor, raw_latents: Tensor) -> np.ndarray:
    """PSNR of every image, decoded from raw latents. (N,)"""
    decoded = torch.cat([vae.decode_raw(part) for part in raw_latents.split(CHUNK)])
    return psnr(images, decoded)
