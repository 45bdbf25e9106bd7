"""Stage component: what the candidate is worth by itself, next to the base's own component."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from sanakit.checks.diffusability import radial_power
from sanakit.checks.measure_text import pool, text_evidence
from sanakit.checks.measure_vae import evidence_of, measured_spec
from sanakit.checks.vae_figures import (
    VAE_ROWS,
    VAEFigures,
    difference,
    difference_interval,
    measure_one,
    table_row,
    timed_in_turn,
)
from sanakit.contracts import Reading
from sanakit.data import ImageDataset
from sanakit.data.cache import Progress, silent, to_images
from sanakit.data.images import SIDE
from sanakit.distributed import peak_megabytes
from sanakit.drift import DRIFT, latent_features
from sanakit.drift.sample import sample_embeddings, sample_latents
from sanakit.drift.shown import Shown
from sanakit.drift.snapshot import write_snapshot
from sanakit.errors import SanakitError
from sanakit.evaluation.figures import error_map, save_grid
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
    reference = None
    if base:
        both = {"candidate": (candidate, measured), "base": (base, measure_one(base, images, progress))}
        timed = timed_in_turn(both, images)
        measured, reference = timed["candidate"], timed["base"]

    small = dataset.subset(list(range(len(images)))).pixels(min(size, SIDE))

    def carry(kind: str, rows: list[int]) -> dict[int, Shown]:
        return {row: Shown(label=dataset.names[row], image=small[row]) for row in rows}

    write_snapshot({"latents": sample_latents(measured.latents)}, run_dir / "latents.snapshot.safetensors", carry=carry)
    evidence |= evidence_of(candidate, images, measured.raw, measured.reconstructed)
    peak = peak_megabytes()
    sides = {"base": reference, "candidate": measured} if reference else {"candidate": measured}
    rows = [
        table_row(metric, unit, read(reference) if reference else None, read(measured), better)
        | difference(each, measured, reference)
        for metric, unit, better, read, each in VAE_ROWS
        if read(measured) is not None
    ]
    return Measured(
        rows=[*rows, table_row("peak memory of the process", "MB", peak if reference else None, peak, "")],
        evidence=evidence,
        channels={side: channel_moments(side_figures.latents) for side, side_figures in sides.items()},
        readings=_drift(reference.latents if reference else None, measured.latents),
        figures=_figures(run_dir, images, measured, reference),
        curves=[_spectra(images, {side: side_figures.latents for side, side_figures in sides.items()})],
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
TIMED = 6
TEXT_ROWS = (
    ("token norm", "", ""),
    ("largest token norm over the median", "", "lower"),
    ("median cosine of two prompts", "", "lower"),
    ("tokens a prompt", "", ""),
    ("dead channels", "", "lower"),
    ("caption tokens per image", "", ""),
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
    read = {"base": dataset.for_base().evaluation_captions(), "candidate": prompts}
    facts, norms, cosines, cut, encoded = {}, {}, {}, {}, None
    for side, encoder in sides.items():
        start = time.perf_counter()
        encoded = encoder.encode(read[side])
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
    speeds = _prompts_per_second(sides, read)
    for side, rates in speeds.items():
        facts[side]["encode"] = float(rates.mean())
    rows = [
        table_row(metric, unit, facts["base"][metric] if base else None, facts["candidate"][metric], better)
        | (difference_interval(speeds["candidate"], speeds.get("base")) if metric == "encode" else {})
        for metric, unit, better in TEXT_ROWS
    ]
    return Measured(
        rows=rows,
        evidence=text_evidence(candidate, prompts, encoded, base_truncated=cut.get("base")),
        curves=[{"title": "Token norms", "x": "share of tokens", "y": "norm", "series": norms}],
        similarity=cosines,
        prompts=prompts[:SHOWN_PROMPTS],
    )


def _prompts_per_second(sides: dict[str, TextEncoder], prompts: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """Of TIMED batches of the same size, timed in turn, so that what else the machine does meets both sides. Few
    prompts begin anew. (TIMED,)"""
    size = max(1, min(16, len(prompts["candidate"]) // TIMED))
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(TIMED):
        for side in list(sides) if number % 2 == 0 else reversed(list(sides)):
            texts = prompts[side]
            batch = [texts[place % len(texts)] for place in range(number * size, (number + 1) * size)]
            begin = time.perf_counter()
            sides[side].encode(batch)
            rates[side].append(len(batch) / (time.perf_counter() - begin))
    return {side: np.asarray(values) for side, values in rates.items()}


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
        "caption tokens per image": encoder.spec.max_tokens,
        "dead channels": int((tokens.std(0) < 1e-6 * tokens.std()).sum()),
        "truncated prompts": encoded.truncated / len(encoded),
        "encode": len(encoded) / seconds,
        "weights in memory": sum(t.numel() * t.element_size() for t in encoder.model.state_dict().values()) / 1e6,
    }
