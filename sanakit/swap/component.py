"""Stage component: what the candidate is worth by itself, next to the base's own component."""

import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from sanakit.contracts import LatentSpec, Reading
from sanakit.data import Pictures
from sanakit.data.cache import Progress, silent, to_images
from sanakit.drift import DRIFT, latent_features
from sanakit.drift.sample import sample_latents, write_snapshot
from sanakit.errors import SanakitError
from sanakit.features import perceptual_distance
from sanakit.swap.figures import error_map, save_grid
from sanakit.text_encoders import TextEncoder
from sanakit.vaes import VAE

COUNT = 192
WORST = 4


@dataclass(kw_only=True)
class Measured:
    """rows: the table of component.json. evidence: what gates read."""

    rows: list[dict[str, Any]]
    evidence: dict[str, Any]
    channels: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    figures: list[dict[str, str]] = field(default_factory=list)


def psnr(images: Tensor, reconstructed: Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio of every picture in dB, range [-1, 1]. (N,)"""
    error = (images - reconstructed).square().mean((1, 2, 3)).clamp_min(1e-10)
    return (10 * torch.log10(4 / error)).numpy()


@dataclass(kw_only=True)
class VAEFigures:
    latents: Tensor
    raw: Tensor
    reconstructed: Tensor
    psnr: np.ndarray
    ssim: float
    perceptual: float | None
    encode_rate: float
    decode_rate: float
    megabytes: float


def measure_one(vae: VAE, images: Tensor, progress: Progress) -> VAEFigures:
    raw, reconstructed = [], []
    spent = [0.0, 0.0]
    for start in range(0, len(images), 16):
        chunk = images[start : start + 16]
        begin = time.perf_counter()
        raw.append(vae.encode_raw(chunk))
        middle = time.perf_counter()
        reconstructed.append(vae.decode_raw(raw[-1]))
        spent[0] += middle - begin
        spent[1] += time.perf_counter() - middle
        progress(f"measuring {vae.name or 'candidate'}", min(start + 16, len(images)), len(images))
    raw_all, rec = torch.cat(raw), torch.cat(reconstructed)
    distance = perceptual_distance(images[:64], rec[:64])
    return VAEFigures(
        latents=vae.normalize(raw_all),
        raw=raw_all,
        reconstructed=rec,
        psnr=psnr(images, rec),
        ssim=float(structural_similarity_index_measure(rec, images, data_range=2.0)),
        perceptual=None if distance is None else float(distance.mean()),
        encode_rate=len(images) / spent[0],
        decode_rate=len(images) / spent[1],
        megabytes=sum(t.numel() * t.element_size() for t in vae.model.state_dict().values()) / 1e6,
    )


def channel_moments(latents: Tensor) -> dict[str, list[float]]:
    """mean, std, skewness and kurtosis (0 for a Gaussian) per channel, over pictures and positions."""
    values = latents.permute(1, 0, 2, 3).flatten(1).double().numpy()
    with np.errstate(all="ignore"):
        moments = {
            "mean": values.mean(1),
            "std": values.std(1),
            "skewness": stats.skew(values, 1),
            "kurtosis": stats.kurtosis(values, 1),
        }
    return {name: np.nan_to_num(v).round(5).tolist() for name, v in moments.items()}


def measured_spec(vae: VAE, size: int) -> LatentSpec:
    """Geometry from one picture, whatever the record says."""
    with torch.no_grad():
        raw = vae._encode(torch.zeros(1, 3, size, size))
    return LatentSpec(latent_channels=raw.shape[1], spatial_compression_ratio=size // raw.shape[-1])


def measure_vae(
    candidate: VAE, base: VAE, pictures: Pictures, size: int, run_dir: Path, progress: Progress = silent
) -> Measured:
    """Reconstruction, geometry, moments, drift against the base, throughput; base beside candidate."""
    images = to_images(pictures.subset(range(min(COUNT, len(pictures)))).pixels(size))
    if size % candidate.spec.spatial_compression_ratio:
        raise SanakitError("SK0110", f"{size} px do not divide by ratio {candidate.spec.spatial_compression_ratio}")
    spec = measured_spec(candidate, size)
    evidence: dict[str, Any] = {"measured_spec": spec, "declared_spec": candidate.spec}
    if spec != candidate.spec:
        return Measured(rows=[], evidence=evidence)
    own, reference = measure_one(candidate, images, progress), measure_one(base, images, progress)

    write_snapshot({"latents": sample_latents(own.latents)}, run_dir / "latents.snapshot.safetensors")
    flat = images.mean((2, 3), keepdim=True).expand_as(images)
    evidence |= {
        "nonfinite_latents": int((~own.raw.isfinite()).sum()),
        "psnr": own.psnr,
        "psnr_of_mean_colour": psnr(images, flat),
        "latent_power": (own.latents - own.latents.mean((0, 2, 3), keepdim=True)).square().mean((1, 2, 3)).numpy(),
        "raw_std": float(own.raw.std()),
        "channel_std": own.latents.std((0, 2, 3)).numpy(),
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    rows = [
        _row("PSNR", "dB", float(reference.psnr.mean()), float(own.psnr.mean()), "higher"),
        _row("SSIM", "", reference.ssim, own.ssim, "higher"),
    ]
    if own.perceptual is not None and reference.perceptual is not None:
        rows.append(_row("perceptual distance (EffLite0)", "", reference.perceptual, own.perceptual, "lower"))
    rows += [
        _row("latent standard deviation", "", float(reference.latents.std()), float(own.latents.std()), ""),
        _row("numbers a picture", "", reference.latents[0].numel(), own.latents[0].numel(), ""),
        _row("encode", "pictures/s", reference.encode_rate, own.encode_rate, "higher"),
        _row("decode", "pictures/s", reference.decode_rate, own.decode_rate, "higher"),
        _row("weights in memory", "MB", reference.megabytes, own.megabytes, "lower"),
        _row("peak memory of the process", "MB", peak, peak, ""),
    ]
    return Measured(
        rows=rows,
        evidence=evidence,
        channels={"base": channel_moments(reference.latents), "candidate": channel_moments(own.latents)},
        readings=_drift(reference.latents, own.latents),
        figures=_figures(run_dir, images, own, reference),
    )


def _row(metric: str, unit: str, base: float, candidate: float, better: str) -> dict[str, Any]:
    return {"metric": metric, "unit": unit, "base": float(base), "candidate": float(candidate), "better": better}


def _drift(reference: Tensor, own: Tensor) -> list[Reading]:
    """Candidate against the base's latents where the channels correspond; else against the unit Gaussian the core was
    trained to start from, channel by channel, said in the name. A swap moves latents by design: no alarm here."""
    same = reference.shape[1:] == own.shape[1:]
    readings = []
    if same:
        first, second = latent_features(reference).numpy(), latent_features(own).numpy()
        for name in ("welch-max", "gaussian-kl"):
            reading = DRIFT.get(name)(first, second, 0.05)
            readings.append(
                Reading(
                    name=name,
                    title=f"{reading.title}, against the base",
                    value=reading.value,
                    where=reading.where,
                    p_value=reading.p_value,
                )
            )
    mean, std = own.mean((0, 2, 3)).double(), own.std((0, 2, 3)).double().clamp_min(1e-6)
    kl = 0.5 * (std**2 + mean**2 - 1) - std.log()
    worst = int(kl.argmax())
    readings.append(
        Reading(name="kl-unit-gaussian", title="KL to the unit Gaussian, mean over channels", value=float(kl.mean()))
    )
    readings.append(
        Reading(
            name="kl-unit-gaussian-worst",
            title="KL to the unit Gaussian, worst channel",
            value=float(kl[worst]),
            where=f"channel {worst}",
        )
    )
    return readings


def _figures(run_dir: Path, images: Tensor, own: VAEFigures, reference: VAEFigures) -> list[dict[str, str]]:
    worst = torch.from_numpy(own.psnr).argsort()[:WORST]
    rest = torch.linspace(0, len(images) - 1, 8).long()[: 8 - WORST]
    chosen = torch.cat([rest, worst])
    grid = torch.cat(
        [
            images[chosen],
            reference.reconstructed[chosen],
            own.reconstructed[chosen],
            error_map(images[chosen], own.reconstructed[chosen]),
        ]
    )
    latent = own.latents[chosen]
    shown = latent[:, :3] if latent.shape[1] >= 3 else latent[:, :1].expand(-1, 3, -1, -1)
    enlarged = torch.nn.functional.interpolate((shown / 3).clamp(-1, 1), size=images.shape[-2:], mode="nearest")
    return [
        save_grid(
            run_dir,
            "reconstruction",
            grid,
            "reconstruction",
            "pictures, base, candidate, candidate's error",
            f"the {WORST} columns on the right are the candidate's worst of {len(images)}",
        ),
        save_grid(
            run_dir, "latents", enlarged, "latents", "candidate latents", "first three channels as colours, +-3 std"
        ),
    ]


def measure_text_encoder(candidate: TextEncoder, base: TextEncoder, pictures: Pictures) -> Measured:
    """Finite, distinct, padding-proof embeddings; norms and speed; base beside candidate."""
    prompts = [captions[-1] for captions in pictures.captions[:COUNT]]
    facts = [_text_facts(encoder, prompts) for encoder in (base, candidate)]
    rows = [
        _row(metric, unit, facts[0][metric], facts[1][metric], better)
        for metric, unit, better in (
            ("token norm", "", ""),
            ("largest token norm over the median", "", "lower"),
            ("median cosine of two prompts", "", "lower"),
            ("tokens a prompt", "", ""),
            ("dead channels", "", "lower"),
            ("truncated prompts", "share", "lower"),
            ("encode", "prompts/s", "higher"),
            ("weights in memory", "MB", "lower"),
        )
    ]
    own = facts[1]
    evidence = {
        "nonfinite_embeddings": own["nonfinite"],
        "nearest_cosine": own["median cosine of two prompts"],
        "padding_difference": own["padding difference"],
        "truncated_share": own["truncated prompts"],
    }
    return Measured(rows=rows, evidence=evidence)


def _text_facts(encoder: TextEncoder, prompts: list[str]) -> dict[str, float]:
    start = time.perf_counter()
    found = encoder.encode(prompts)
    seconds = time.perf_counter() - start
    tokens = found.embeds[found.mask]
    norms = tokens.norm(dim=-1)
    weights = found.mask[..., None].float()
    pooled = torch.nn.functional.normalize((found.embeds * weights).sum(1) / weights.sum(1).clamp_min(1), dim=-1)
    cosines = pooled @ pooled.T
    pairs = cosines[~torch.eye(len(prompts), dtype=torch.bool)]
    alone = encoder.encode(prompts[:1])
    difference = (alone.embeds - found.embeds[:1]).norm() / found.embeds[:1].norm().clamp_min(1e-9)
    return {
        "token norm": norms.mean().item(),
        "largest token norm over the median": (norms.max() / norms.median().clamp_min(1e-9)).item(),
        "median cosine of two prompts": pairs.median().item(),
        "tokens a prompt": found.mask.sum(1).float().mean().item(),
        "dead channels": int((tokens.std(0) < 1e-6 * tokens.std()).sum()),
        "truncated prompts": found.truncated / len(prompts),
        "encode": len(prompts) / seconds,
        "weights in memory": sum(t.numel() * t.element_size() for t in encoder.model.state_dict().values()) / 1e6,
        "padding difference": difference.item(),
        "nonfinite": int((~found.embeds.isfinite()).sum()),
    }
