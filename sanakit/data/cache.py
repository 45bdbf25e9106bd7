"""Raw latents and embeddings, computed once and kept in a content-addressed store (data/store.py).

A row's key: weights, class and geometry of the encoder, bytes of the image (or the caption), size, preprocessing,
mirroring, and the major versions of torch, diffusers and transformers. Kept are the posterior's mean and, where there
is a posterior, its standard deviation, both raw, so that another normalisation never rebuilds a cache. An entry that
was found is spot-checked: a few rows are computed again before anything is trained on it.
"""

import functools
import importlib.metadata
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanakit.batching import batch_size, in_batches
from sanakit.data import store
from sanakit.data.buckets import Size
from sanakit.data.images import PREPROCESSING, SIDE, row_content
from sanakit.data.store import Rows
from sanakit.data.table import ImageDataset
from sanakit.errors import SanakitError
from sanakit.files import cache_dir
from sanakit.placement import Placement, host
from sanakit.text_encoders import PromptEmbeds, TextEncoder
from sanakit.vaes import VAE

BATCH_SIZE = 32
PROMPT_BATCH = 128
HALF_TOLERANCE = 0.05  # relative L2 of a spot check where the encoder computes in half precision
RESIDENT_BYTES = 2 << 30  # what is larger stays on disk and is read by memory map
Progress = Callable[[str, int, int], None]  # label, done, total


def silent(label: str, done: int, total: int) -> None:
    """No progress shown."""


def to_images(pixels: Any) -> Tensor:
    """(N, S, S, 3) uint8 array -> (N, 3, S, S) float in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What fills an entry: its facts, content hashes of the rows, how to compute any of them, and bytes of one."""

    facts: dict[str, Any]
    rows: Tensor
    compute: Callable[[range], dict[str, Tensor]]
    checked: str  # the tensor whose spot check tells
    again: Callable[[list[int]], Tensor]
    row_bytes: int
    hold: Callable[[], AbstractContextManager[None]] = nullcontext  # takes the encoder to its device

    def run(self, cache: Path | None = None, *, must_exist: bool = False) -> tuple[store.Entry, dict[str, Rows], bool]:
        """The entry, its tensors, and whether it was found. A found one is spot-checked; SK0404 where it must exist
        but does not, with the fields that differ."""
        root = cache or cache_dir()
        single = {key: value for key, value in self.facts.items() if key != "compute"}  # fp32 serves half precision too
        match = store.find(root, self.facts, self.rows) or store.find(root, single, self.rows)
        if match is None:
            if must_exist:
                store.refuse_other(root, self.facts)
            with self.hold():
                entry = store.write(root, self.facts, self.rows, self.compute, row_bytes=self.row_bytes)
            shards, where = entry.read(), torch.arange(len(self.rows))
        else:
            entry, shards, where = match
            every = Rows(shards[self.checked], torch.arange(entry.manifest["count"]))
            tolerance = HALF_TOLERANCE if "compute" in self.facts else store.SPOT_TOLERANCE
            with self.hold():
                store.spot_check(entry, where, every.__getitem__, self.again, tolerance)
        tensors = {name: Rows(parts, where) for name, parts in shards.items() if name != "rows"}
        return entry, tensors, match is not None


def latent_job(
    vae: VAE,
    dataset: ImageDataset,
    size: int | Size,
    *,
    mirror: bool = False,
    progress: Progress = silent,
    like: Job | None = None,
    placement: Placement | None = None,
) -> Job:
    """raw_latents (N, M, C, h, w) float32; M is 2 with the mirrored image second; raw_std bfloat16, where the VAE has a
    posterior. like: a job of the same VAE, images and size, whose hashes are taken over."""
    views = 2 if mirror else 1
    sides = (size, size) if isinstance(size, int) else size
    placement = placement or host()
    what, most = f"encoding with {vae.name or 'the VAE'}", 0

    def encode(images: Tensor) -> dict[str, Tensor]:
        seen = (images, images.flip(-1)) if mirror else (images,)
        means, stds = zip(*(vae.encode_posterior(view) for view in seen), strict=True)
        encoded = {"raw_latents": torch.stack(means, 1)}
        return encoded if stds[0] is None else encoded | {"raw_std": torch.stack(stds, 1).bfloat16()}

    def compute(part: range) -> dict[str, Tensor]:
        nonlocal most
        rows: list[dict[str, Tensor]] = []
        chunks = [part[i : i + BATCH_SIZE] for i in range(0, len(part), BATCH_SIZE)]
        for chunk, pixels in read_ahead(chunks, lambda c: dataset.subset(c).pixels(size), _decoders()):
            images = to_images(pixels)
            most = most or batch_size(placement, BATCH_SIZE, functools.partial(encode, images[:1]))
            found, most = in_batches(images, most, encode, what=what)
            rows += found
            progress(what, chunk.stop, len(dataset))
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    return Job(
        facts={
            "kind": "latents",
            "encoder": like.facts["encoder"] if like else vae.fingerprint(),
            "size": size if isinstance(size, int) else list(size),
            "fit": dataset.fit if isinstance(size, int) else "crop",
            "mirror": mirror,
            "preprocessing": PREPROCESSING,
            "mode": "posterior mean and std",  # the std where there is a posterior
            "dtype": "float32",
            **placement.compute_facts("vae"),
            "libraries": _versions(),
        },
        rows=like.rows if like else store.row_hashes(row_content(image) for image in dataset.images),
        compute=compute,
        checked="raw_latents",
        again=lambda chosen: encode(to_images(dataset.subset(chosen).pixels(size)))["raw_latents"],
        row_bytes=6 * views * torch.Size(vae.spec.shape(*sides)).numel(),
        hold=lambda: placement.holding(vae),
    )


def thumbnails(dataset: ImageDataset, size: int, *, progress: Progress = silent) -> Tensor:
    """(N, s, s, 3) uint8, s at most drift.images.SIDE: what a page about drift shows; training never reads it."""
    parts, rows = [], range(len(dataset))
    chunks = [rows[start : start + PROMPT_BATCH] for start in range(0, len(rows), PROMPT_BATCH)]
    for chunk, pixels in read_ahead(chunks, lambda c: dataset.subset(c).pixels(min(size, SIDE)), _decoders()):
        parts.append(torch.from_numpy(pixels))
        progress("keeping small images", chunk.stop, len(dataset))
    return torch.cat(parts)


def embedding_job(
    encoder: TextEncoder, prompts: list[str], *, progress: Progress = silent, placement: Placement | None = None
) -> Job:
    """embeds (N, L, D) float16, mask (N, L) bool, truncated (N,): a batch's count of prompts cut short, in its first
    row."""
    placement = placement or host()
    what, most = f"encoding prompts with {encoder.name or 'the text encoder'}", 0

    def encode(some: list[str]) -> dict[str, Tensor]:
        part = encoder.encode(some)
        embeds = part.embeds.half()
        if not embeds.isfinite().all():
            raise SanakitError("SK0301", f"{encoder.name} gives embeddings that are not finite in half precision")
        truncated = torch.zeros(len(some), dtype=torch.int64)
        truncated[0] = part.truncated
        return {"embeds": embeds, "mask": part.mask, "truncated": truncated}

    def compute(part: range) -> dict[str, Tensor]:
        nonlocal most
        batches: list[dict[str, Tensor]] = []
        most = most or batch_size(placement, PROMPT_BATCH, lambda: encode(prompts[part.start : part.start + 1]))
        for start in range(part.start, part.stop, PROMPT_BATCH):
            stop = min(start + PROMPT_BATCH, part.stop)
            found, most = in_batches(prompts[start:stop], most, encode, what=what)
            batches += found
            progress(what, stop, len(prompts))
        return {name: torch.cat([b[name] for b in batches]) for name in batches[0]}

    return Job(
        facts={
            "kind": "embeddings",
            "encoder": encoder.fingerprint(),
            "dtype": "float16",
            **placement.compute_facts("text_encoder"),
            "libraries": _versions(),
        },
        rows=store.row_hashes(p.encode() for p in prompts),
        compute=compute,
        checked="embeds",
        again=lambda chosen: encode([prompts[i] for i in chosen])["embeds"],
        row_bytes=encoder.spec.max_tokens * (2 * encoder.spec.embed_dim + 1),
        hold=lambda: placement.holding(encoder),
    )


def raw_latents(
    vae: VAE,
    dataset: ImageDataset,
    size: int | Size,
    *,
    mirror: bool = False,
    progress: Progress = silent,
    cache: Path | None = None,
    must_exist: bool = False,
    placement: Placement | None = None,
) -> Tensor | Rows:
    """Raw latents (N, M, C, h, w); M is 2 with the mirrored image second. Computed once, then read.

    cache: folder of the store, by default the user's. must_exist: SK0404 names what differs instead of encoding.
    """
    return posteriors(
        vae,
        dataset,
        size,
        mirror=mirror,
        progress=progress,
        cache=cache,
        must_exist=must_exist,
        placement=placement,
    )[0]


def posteriors(
    vae: VAE,
    dataset: ImageDataset,
    size: int | Size,
    *,
    mirror: bool = False,
    progress: Progress = silent,
    cache: Path | None = None,
    must_exist: bool = False,
    placement: Placement | None = None,
) -> tuple[Tensor | Rows, Tensor | Rows | None]:
    """Raw latents as above, and the posterior's standard deviation (bfloat16), None where the VAE has no posterior."""
    job = latent_job(vae, dataset, size, mirror=mirror, progress=progress, placement=placement)
    tensors: dict[str, Rows] | None = None
    if not mirror:
        double = latent_job(vae, dataset, size, mirror=True, like=job, placement=placement)
        if store.find(cache or cache_dir(), double.facts, double.rows) is not None:
            both = double.run(cache)[1]
            tensors = {name: Rows([shard[:, :1] for shard in rows.shards], rows.index) for name, rows in both.items()}
    if tensors is None:
        tensors = job.run(cache, must_exist=must_exist)[1]
    return _resident(tensors["raw_latents"]), _resident(tensors["raw_std"]) if "raw_std" in tensors else None


def embeddings(
    encoder: TextEncoder,
    prompts: list[str],
    *,
    progress: Progress = silent,
    cache: Path | None = None,
    must_exist: bool = False,
    placement: Placement | None = None,
) -> PromptEmbeds:
    """Embeddings of prompts, kept in half precision on disk and in memory. cache, must_exist: as for latents."""
    job = embedding_job(encoder, prompts, progress=progress, placement=placement)
    _, tensors, _ = job.run(cache, must_exist=must_exist)
    return PromptEmbeds(_resident(tensors["embeds"]), _resident(tensors["mask"]), int(tensors["truncated"][:].sum()))  # type: ignore[arg-type]


def _resident(rows: Rows) -> Tensor | Rows:
    return rows[:] if rows.nbytes <= RESIDENT_BYTES else rows


def _decoders() -> int:
    """Threads that decode ahead of the encoder: Pillow works outside the interpreter's lock."""
    return max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name).split(".")[0] for name in ("torch", "diffusers", "transformers")}


def read_ahead(items: Sequence[Any], work: Callable[[Any], Any], workers: int = 1) -> Iterator[tuple[Any, Any]]:
    """Items with their work, in order; the next `workers` ones' already under way on as many threads."""
    if not workers:
        yield from ((item, work(item)) for item in items)
        return
    with ThreadPoolExecutor(workers) as pool:
        pending = deque(pool.submit(work, item) for item in items[:workers])
        for i, item in enumerate(items):
            ready = pending.popleft().result()
            if i + workers < len(items):
                pending.append(pool.submit(work, items[i + workers]))
            yield item, ready
