"""What a swap needs of the host's memory and of the disk."""

from collections.abc import Sequence

import torch

from sanakit.data.cache import RESIDENT_BYTES
from sanakit.needs.swap import Outlines, core_bytes
from sanakit.strategies.base import Strategy
from sanakit.training.checkpoint import KEEP
from sanakit.training.estimate import FP32, Estimate, fake_core

VIEWS = 2  # of a training image: as it is, and mirrored


def host_bytes(
    outlines: Outlines, arms: list[type[Strategy]], estimates: dict[str, Estimate], whole: Estimate, images: int
) -> dict[str, int]:
    """One copy of each part, what waits of a race, and what is resident of the cache."""
    base, _ = fake_core(outlines.base.core, adapters=outlines.base.adapters)
    rows = cached_bytes(outlines, images)
    waiting = [e.weights + e.optimizer + e.average for e in (estimates[arm.name] for arm in arms)]
    return {
        "base core": core_bytes(base),
        "vaes": sum(vae.stored for vae in outlines.vaes.values()),
        "text encoders": sum(encoder.stored for encoder in outlines.encoders.values()),
        "arms": sum(waiting) or whole.weights,
        "latents and embeddings": sum(min(RESIDENT_BYTES, size) for size in rows.values()),
    }


def cached_bytes(outlines: Outlines, images: int) -> dict[str, int]:
    """Bytes of the cache by entry: latents with their deviation, embeddings with their mask (data/cache.py). What is
    encoded live is in none; `auto` is counted as ahead."""
    size, data = outlines.size, outlines.config.data
    latents = {
        f"latents of the {side}": 6 * VIEWS * images * torch.Size(vae.spec.shape(size, size)).numel()
        for side, vae in outlines.vaes.items()
        if data.latents != "live"
    }
    texts = {
        f"embeddings of the {side}": images * e.spec.max_tokens * (2 * e.spec.embed_dim + 1)
        for side, e in outlines.encoders.items()
        if data.embeddings != "live"
    }
    return latents | texts


def disk_bytes(
    outlines: Outlines, stages: Sequence[str], arm: Estimate, whole: Estimate, images: int
) -> dict[str, int]:
    sizes = cached_bytes(outlines, images) if {"smoke", "full"} & set(stages) else {}
    if "smoke" in stages:
        sizes["arms of the race"] = 2 * arm.checkpoint  # of those that go on; others leave a curve
    if "full" in stages:
        always = outlines.config.train.schedule == "constant-then-decay"
        sizes["checkpoints"] = (KEEP + 1 + always) * whole.checkpoint
        sizes["model"] = FP32 * whole.parameters
    return sizes
