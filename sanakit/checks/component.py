"""Stage component: what the candidate is worth by itself, next to the base's own component."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from sanakit.checks.diffusability import radial_power
from sanakit.checks.measure_text import pool, text_evidence
from sanakit.checks.measure_vae import evidence_of, measured_spec, psnr
from sanakit.contracts import Reading
from sanakit.data import ImageDataset
from sanakit.data.cache import Progress, silent, to_images
from sanakit.data.images import SIDE
from sanakit.drift import DRIFT, latent_features
from sanakit.drift.sample import sample_embeddings, sample_latents
from sanakit.drift.shown import Shown
from sanakit.drift.snapshot import write_snapshot
from sanakit.errors import SanakitError
from sanakit.evaluation.figures import error_map, save_grid
from sanakit.evaluation.perceptual import perceptual_distance
from sanakit.text_encoders import PromptEmbeds, TextEncoder
from sanakit.vaes import VAE

WORST = 4


@dataclass(kw_only=True)
class Measured:
    """rows: the table of component.json. evidence: what gates read."""

    rows: list[dict[str, Any]]
    evidence: dict[str, Any]
    channels: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    figures: list[dict[str, str]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)  # {title, x, y, series: {name: [[x, y], ...]}}
    similarity: dict[str, list[list[float]]] = field(default_factory=dict)  # cosines of prompts, by side
    prompts: list[str] = field(default_factory=list)  # of the similarity's rows


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
    """mean, std, skewness and kurtosis (0 for a Gaussian) per channel, over images and positions."""
    values = latents.permute(1, 0, 2, 3).flatten(1).double().numpy()
    with np.errstate(all="ignore"):
        moments = {
            "mean": values.mean(1),
            "std": values.std(1),
            "skewness": stats.skew(values, 1),
            "kurtosis": stats.kurtosis(values, 1),
        }
    return {name: np.nan_to_num(v).round(5).tolist() for name, v in moments.items()}


def measure_vae(
    candidate: VAE, base: VAE | None, dataset: ImageDataset, size: int, run_dir: Path, progress: Progress = silent
) -> Measured:
    """Reconstruction, geometry, moments, drift against the base, throughput; base beside candidate, or a bare VAE."""
    images = to_images(dataset.pixels(size))
    if size % candidate.spec.spatial_compression_ratio:
        raise SanakitError("SK0110", f"{size} px do not divide by ratio {candidate.spec.spatial_compression_ratio}")
    spec = measured_spec(candidate, size)
    evidence: dict[str, Any] = {"measured_spec": spec, "declared_spec": candidate.spec}
    if spec != candidate.spec:
        return Measured(rows=[], evidence=evidence)
    measured = measure_one(candidate, images, progress)
    reference = measure_one(base, images, progress) if base else None

    small = dataset.subset(list(range(len(images)))).pixels(min(size, SIDE))

    def carry(kind: str, rows: list[int]) -> dict[int, Shown]:
        return {row: Shown(label=dataset.names[row], image=small[row]) for row in rows}

    write_snapshot({"latents": sample_latents(measured.latents)}, run_dir / "latents.snapshot.safetensors", carry=carry)
    evidence |= evidence_of(candidate, images, measured.raw, measured.reconstructed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    sides = {"base": reference, "candidate": measured} if reference else {"candidate": measured}
    rows = [
        _row(metric, unit, read(reference) if reference else None, read(measured), better)
        for metric, unit, better, read in VAE_ROWS
        if read(measured) is not None
    ]
    return Measured(
        rows=[*rows, _row("peak memory of the process", "MB", peak if reference else None, peak, "")],
        evidence=evidence,
        channels={side: channel_moments(side_figures.latents) for side, side_figures in sides.items()},
        readings=_drift(reference.latents if reference else None, measured.latents),
        figures=_figures(run_dir, images, measured, reference),
        curves=[_spectra(images, {side: side_figures.latents for side, side_figures in sides.items()})],
    )


VAE_ROWS: tuple[tuple[str, str, str, Callable[[VAEFigures], Any]], ...] = (
    ("PSNR", "dB", "higher", lambda f: f.psnr.mean()),
    ("SSIM", "", "higher", lambda f: f.ssim),
    ("perceptual distance (EffLite0)", "", "lower", lambda f: f.perceptual),
    ("latent standard deviation", "", "", lambda f: f.latents.std()),
    ("latent values per image", "", "", lambda f: f.latents[0].numel()),
    ("encode", "images/s", "higher", lambda f: f.encode_rate),
    ("decode", "images/s", "higher", lambda f: f.decode_rate),
    ("weights in memory", "MB", "lower", lambda f: f.megabytes),
)


def _spectra(images: Tensor, sides: dict[str, Tensor]) -> dict[str, Any]:
    """Share of DCT power by cycles a image: each side's latents, and the images at the larger latents' size."""
    size = max((maps.shape[-2:] for maps in sides.values()), key=lambda shape: shape[0] * shape[1])
    series = {"images": torch.nn.functional.interpolate(images, size=size, mode="area")} | sides
    lines = {}
    for name, maps in series.items():
        shares = radial_power(maps.nan_to_num(0)).tolist() if min(maps.shape[-2:]) > 2 else []
        lines[name] = [[k + 1, round(share, 8)] for k, share in enumerate(shares)]
    return {"title": "Power spectra", "x": "half cycles per image", "y": "share of power", "series": lines}


def _row(metric: str, unit: str, base: float | None, candidate: float, better: str) -> dict[str, Any]:
    reference = None if base is None else float(base)
    return {"metric": metric, "unit": unit, "base": reference, "candidate": float(candidate), "better": better}


def _drift(reference: Tensor | None, latents: Tensor) -> list[Reading]:
    """Candidate against the base's latents where the channels correspond; else against the unit Gaussian the core was
    trained to start from, channel by channel, said in the name. A swap moves latents by design: no alarm here."""
    readings = []
    if reference is not None and reference.shape[1:] == latents.shape[1:]:
        first, second = latent_features(reference).numpy(), latent_features(latents).numpy()
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
    mean, std = latents.mean((0, 2, 3)).double(), latents.std((0, 2, 3)).double().clamp_min(1e-6)
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


def _figures(run_dir: Path, images: Tensor, measured: VAEFigures, reference: VAEFigures | None) -> list[dict[str, str]]:
    worst = torch.from_numpy(measured.psnr).argsort()[:WORST]
    rest = torch.linspace(0, len(images) - 1, 8).long()[: 8 - WORST]
    chosen = torch.cat([rest, worst])
    grid = torch.cat(
        [
            images[chosen],
            *([reference.reconstructed[chosen]] if reference else []),
            measured.reconstructed[chosen],
            error_map(images[chosen], measured.reconstructed[chosen]),
        ]
    )
    latent = measured.latents[chosen]
    shown = latent[:, :3] if latent.shape[1] >= 3 else latent[:, :1].expand(-1, 3, -1, -1)
    enlarged = torch.nn.functional.interpolate((shown / 3).clamp(-1, 1), size=images.shape[-2:], mode="nearest")
    return [
        save_grid(
            run_dir,
            "reconstruction",
            grid,
            "reconstruction",
            f"images, {'base, ' if reference else ''}candidate, candidate's error",
            f"the {WORST} columns on the right are the candidate's worst of {len(images)}",
        ),
        save_grid(
            run_dir, "latents", enlarged, "latents", "candidate latents", "first three channels as colours, +-3 std"
        ),
    ]


SHOWN_PROMPTS = 12
TEXT_ROWS = (
    ("token norm", "", ""),
    ("largest token norm over the median", "", "lower"),
    ("median cosine of two prompts", "", "lower"),
    ("tokens a prompt", "", ""),
    ("dead channels", "", "lower"),
    ("truncated prompts", "share", "lower"),
    ("encode", "prompts/s", "higher"),
    ("weights in memory", "MB", "lower"),
)


def measure_text_encoder(
    candidate: TextEncoder, base: TextEncoder | None, dataset: ImageDataset, run_dir: Path
) -> Measured:
    """Finite, distinct, padding-proof embeddings; norms and speed; base beside candidate, or a bare encoder."""
    prompts = dataset.evaluation_captions()
    sides = {"base": base, "candidate": candidate} if base else {"candidate": candidate}
    facts, norms, cosines, cut, encoded = {}, {}, {}, {}, None
    for side, encoder in sides.items():
        start = time.perf_counter()
        encoded = encoder.encode(prompts)
        facts[side] = _text_facts(encoder, encoded, time.perf_counter() - start)
        cut[side] = encoded.truncated
        ordered = encoded.embeds[encoded.mask].norm(dim=-1).sort().values
        places = torch.linspace(0, len(ordered) - 1, 41).long()
        shares = (places / max(1, len(ordered) - 1)).tolist()
        norms[side] = [[round(a, 4), round(b, 4)] for a, b in zip(shares, ordered[places].tolist(), strict=True)]
        pooled = pool(encoded[:SHOWN_PROMPTS])
        cosines[side] = [[round(v, 4) for v in row] for row in (pooled @ pooled.T).tolist()]
    assert encoded is not None

    def carry(kind: str, rows: list[int]) -> dict[int, Shown]:
        return {row: Shown(label=prompts[row]) for row in rows}

    sample = {"embeddings": sample_embeddings(encoded.embeds, encoded.mask)}
    write_snapshot(sample, run_dir / "embeddings.snapshot.safetensors", carry=carry)
    rows = [
        _row(metric, unit, facts["base"][metric] if base else None, facts["candidate"][metric], better)
        for metric, unit, better in TEXT_ROWS
    ]
    return Measured(
        rows=rows,
        evidence=text_evidence(candidate, prompts, encoded, base_truncated=cut.get("base")),
        curves=[{"title": "Token norms", "x": "share of tokens", "y": "norm", "series": norms}],
        similarity=cosines,
        prompts=prompts[:SHOWN_PROMPTS],
    )


def _text_facts(encoder: TextEncoder, encoded: PromptEmbeds, seconds: float) -> dict[str, float]:
    tokens = encoded.embeds[encoded.mask]
    norms = tokens.norm(dim=-1)
    pooled = pool(encoded)
    pairs = (pooled @ pooled.T)[~torch.eye(len(encoded), dtype=torch.bool)]
    return {
        "token norm": norms.mean().item(),
        "largest token norm over the median": (norms.max() / norms.median().clamp_min(1e-9)).item(),
        "median cosine of two prompts": pairs.median().item(),
        "tokens a prompt": encoded.mask.sum(1).float().mean().item(),
        "dead channels": int((tokens.std(0) < 1e-6 * tokens.std()).sum()),
        "truncated prompts": encoded.truncated / len(encoded),
        "encode": len(encoded) / seconds,
        "weights in memory": sum(t.numel() * t.element_size() for t in encoder.model.state_dict().values()) / 1e6,
    }
