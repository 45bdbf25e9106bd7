"""Figures of one VAE on one set of images, and the rows of component.json that they become."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from sanakit.checks.base import interval
from sanakit.data.cache import Progress
from sanakit.evaluation.perceptual import perceptual_distance
from sanakit.evaluation.reconstruction import psnr
from sanakit.ranks.sharing import shared
from sanakit.vaes import VAE

TIMED = 6  # batches a side
PERCEIVED = 64  # images behind the perceptual distance
CHUNK = 16


@dataclass(kw_only=True)
class VAEFigures:
    latents: Tensor
    raw: Tensor
    reconstructed: Tensor
    psnr: np.ndarray
    ssim: np.ndarray
    perceptual: np.ndarray | None  # of the first PERCEIVED images
    encode_rate: float
    decode_rate: float
    encode_rates: np.ndarray  # of every batch; of the same moments on both sides where they were timed in turn
    decode_rates: np.ndarray
    megabytes: float


def measure_one(vae: VAE, images: Tensor, progress: Progress) -> VAEFigures:
    """images: (N, 3, H, W) in [-1, 1]. The ranks of a run share them."""

    def measure(starts: Sequence[int]) -> list[tuple[Tensor, Tensor, float, float]]:
        measured = []
        for start in starts:
            begin = time.perf_counter()
            raw = vae.encode_raw(images[start : start + CHUNK])
            middle = time.perf_counter()
            reconstructed = vae.decode_raw(raw)
            measured.append((raw, reconstructed, middle - begin, time.perf_counter() - middle))
            progress(f"measuring {vae.name or 'candidate'}", min(start + CHUNK, len(images)), len(images))
        return measured

    chunks = shared(range(0, len(images), CHUNK), measure)
    raw_all, rec = torch.cat([chunk[0] for chunk in chunks]), torch.cat([chunk[1] for chunk in chunks])
    distance = perceptual_distance(images[:PERCEIVED], rec[:PERCEIVED])
    seconds, count = np.asarray([chunk[2:] for chunk in chunks]), np.asarray([len(chunk[0]) for chunk in chunks])
    return VAEFigures(
        latents=vae.normalize(raw_all),
        raw=raw_all,
        reconstructed=rec,
        psnr=psnr(images, rec),
        ssim=structural_similarity_index_measure(rec, images, data_range=2.0, reduction="none").numpy(),
        perceptual=None if distance is None else distance.numpy(),
        encode_rate=len(images) / seconds[:, 0].sum(),
        decode_rate=len(images) / seconds[:, 1].sum(),
        encode_rates=count / seconds[:, 0],
        decode_rates=count / seconds[:, 1],
        megabytes=sum(t.numel() * t.element_size() for t in vae.model.state_dict().values()) / 1e6,
    )


def timed_in_turn(sides: dict[str, tuple[VAE, VAEFigures]], images: Tensor) -> dict[str, VAEFigures]:
    """The figures with speeds that were timed batch by batch in turn, so that what else the machine does meets every
    side; the order is reversed from batch to batch."""
    batch = images[:16]
    spent: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for number in range(TIMED):
        for side in list(sides) if number % 2 == 0 else reversed(list(sides)):
            vae = sides[side][0]
            begin = time.perf_counter()
            raw = vae.encode_raw(batch)
            middle = time.perf_counter()
            vae.decode_raw(raw)
            spent[side].append((middle - begin, time.perf_counter() - middle))
    timed = {}
    for side, (_, figures) in sides.items():
        rates = len(batch) / np.asarray(spent[side])  # (TIMED, 2)
        means = len(batch) / np.mean(spent[side], axis=0)
        timed[side] = replace(
            figures,
            encode_rate=float(means[0]),
            decode_rate=float(means[1]),
            encode_rates=rates[:, 0],
            decode_rates=rates[:, 1],
        )
    return timed


Each = Callable[[VAEFigures], Any] | None  # the values behind a figure, one an image or a batch
VAE_ROWS: tuple[tuple[str, str, str, Callable[[VAEFigures], Any], Each], ...] = (
    ("PSNR", "dB", "higher", lambda f: f.psnr.mean(), lambda f: f.psnr),
    ("SSIM", "", "higher", lambda f: f.ssim.mean(), lambda f: f.ssim),
    (
        "perceptual distance (EffLite0)",
        "",
        "lower",
        lambda f: None if f.perceptual is None else f.perceptual.mean(),
        lambda f: f.perceptual,
    ),
    ("latent standard deviation", "", "", lambda f: f.latents.std(), None),
    ("latent values per image", "", "", lambda f: f.latents[0].numel(), None),
    ("encode", "images/s", "higher", lambda f: f.encode_rate, lambda f: f.encode_rates),
    ("decode", "images/s", "higher", lambda f: f.decode_rate, lambda f: f.decode_rates),
    ("weights in memory", "MB", "lower", lambda f: f.megabytes, None),
)


def difference(each: Each, candidate: VAEFigures, reference: VAEFigures | None) -> dict[str, float]:
    """The 90% interval of candidate less base, paired over images, or over batches of a speed; empty where there is
    none."""
    if each is None or reference is None:
        return {}
    return difference_interval(each(candidate), each(reference))


def difference_interval(candidate: Any, reference: Any) -> dict[str, float]:
    """candidate, reference: (N,) of the same images or batches."""
    if candidate is None or reference is None or len(candidate) < 2:
        return {}
    low, high = interval(np.asarray(candidate, np.float64) - np.asarray(reference, np.float64))[1]
    return {"difference_low": low, "difference_high": high}


def table_row(metric: str, unit: str, base: float | None, candidate: float, better: str) -> dict[str, Any]:
    """A row of component.json; better: `higher`, `lower` or empty."""
    reference = None if base is None else float(base)
    return {"metric": metric, "unit": unit, "base": reference, "candidate": float(candidate), "better": better}
