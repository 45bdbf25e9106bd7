"""Raw latents and embeddings, computed once and kept in a content-addressed store (data/store.py).

A row's key: weights, class and geometry of the encoder, bytes of the image (or the caption), size, preprocessing,
mirroring, and major versions of torch, diffusers and transformers. Kept are the posterior's mean and, where it has one,
its standard deviation, raw, for any normalisation. Of an entry that was found a few rows are computed again.
"""

import functools
import importlib.metadata
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanakit.batching import batch_size, in_batches
from sanakit.data import store
from sanakit.data.buckets import Size
from sanakit.data.decode import decode_rows, encode_views, mark_failed, row_keys, sides_of
from sanakit.data.images import PREPROCESSING, SIDE
from sanakit.data.job import Job, first_of_each, open_packed
from sanakit.data.packed import PackedRows, join, pack
from sanakit.data.rows import Rows
from sanakit.data.table import ImageDataset
from sanakit.files import cache_dir
from sanakit.placement import Placement, host
from sanakit.ranks.sharing import shared
from sanakit.text_encoders import PromptEmbeds, TextEncoder
from sanakit.text_encoders.base import as_kept
from sanakit.vaes import VAE

BATCH_SIZE = 32
PROMPT_BATCH = 128
REPEATS_SEEN_IN = 4096  # prompts that tell whether most are repeated
RESIDENT_BYTES = 2 << 30  # what is larger stays on disk and is read by memory map
Progress = Callable[[str, int, int], None]  # label, done, total


def silent(label: str, done: int, total: int) -> None:
    """No progress shown."""


def to_images(pixels: Any) -> Tensor:
    """(N, S, S, 3) uint8 array -> (N, 3, S, S) float in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


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
    posterior; failed (N,) bool, images that cannot be read or decoded, whose latents are zero. like: a job of the same
    VAE, images and size, whose hashes are taken over."""
    placement = placement or host()
    what, most = f"encoding with {vae.name or 'the VAE'}", 0

    encode = functools.partial(encode_views, vae, mirror=mirror)

    def encode_chunks(chunks: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
        nonlocal most
        rows: list[dict[str, Tensor]] = []
        for chunk, (pixels, failed) in read_ahead(chunks, lambda c: decode_rows(dataset.subset(c), size), decoders()):
            images = to_images(pixels)
            most = most or batch_size(placement, BATCH_SIZE, functools.partial(encode, images[:1]))
            parts, most = in_batches(images, most, encode, what=what)
            rows.append(mark_failed({name: torch.cat([few[name] for few in parts]) for name in parts[0]}, [*failed]))
            progress(what, chunk[-1] + 1, len(dataset))
        return rows

    def compute(part: Sequence[int]) -> dict[str, Tensor]:
        rows = shared([part[i : i + BATCH_SIZE] for i in range(0, len(part), BATCH_SIZE)], encode_chunks)
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def again(chosen: list[int]) -> Tensor:
        pixels, failed = decode_rows(dataset.subset(chosen), size)
        return mark_failed(encode(to_images(pixels)), [*failed])["raw_latents"]

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
        rows=like.rows if like else row_keys(dataset),
        compute=compute,
        checked="raw_latents",
        again=again,
        row_bytes=6 * (1 + mirror) * torch.Size(vae.spec.shape(*sides_of(size))).numel(),
        hold=lambda: placement.holding(vae),
    )


def thumbnails(dataset: ImageDataset, size: int, *, progress: Progress = silent) -> Tensor:
    """(N, s, s, 3) uint8, s at most drift.images.SIDE: what a page about drift shows; training never reads it."""
    parts, rows = [], range(len(dataset))
    chunks = [rows[start : start + PROMPT_BATCH] for start in range(0, len(rows), PROMPT_BATCH)]
    for chunk, pixels in read_ahead(chunks, lambda c: dataset.subset(c).pixels(min(size, SIDE)), decoders()):
        parts.append(torch.from_numpy(pixels))
        progress("keeping small images", chunk.stop, len(dataset))
    return torch.cat(parts)


def embedding_job(
    encoder: TextEncoder, prompts: Sequence[str], *, progress: Progress = silent, placement: Placement | None = None
) -> Job:
    """embeds (N, L, D) in `encoder.kept_in`, kept without padding (data/packed.py), mask (N, L) bool, truncated (N,): a
    batch's count of prompts cut short, in its first row."""
    placement = placement or host()
    what, most = f"encoding prompts with {encoder.name or 'the text encoder'}", 0

    def encode(some: list[str]) -> PromptEmbeds:
        part = encoder.encode(some)
        return PromptEmbeds(as_kept(part.embeds, encoder), part.mask, part.truncated)

    def encode_chunks(chunks: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
        nonlocal most
        batches: list[dict[str, Tensor]] = []
        most = most or batch_size(placement, PROMPT_BATCH, lambda: encode([prompts[chunks[0][0]]]))
        for rows in chunks:
            results, most = in_batches([prompts[row] for row in rows], most, encode, what=what)
            parts = []
            for embedded in results:
                truncated = torch.zeros(len(embedded), dtype=torch.int64)
                truncated[0] = embedded.truncated
                parts.append(pack(embedded) | {"truncated": truncated})
            batches.append(join(parts))
            progress(what, rows[-1] + 1, len(prompts))
        return batches

    def compute(part: Sequence[int]) -> dict[str, Tensor]:
        return join(shared([part[i : i + PROMPT_BATCH] for i in range(0, len(part), PROMPT_BATCH)], encode_chunks))

    return Job(
        facts={
            "kind": "embeddings",
            "encoder": encoder.fingerprint(),
            "dtype": str(encoder.kept_in).removeprefix("torch."),
            **placement.compute_facts("text_encoder"),
            "libraries": _versions(),
        },
        rows=store.row_hashes(p.encode() for p in prompts),
        compute=compute,
        checked="embeds",
        again=lambda chosen: encode([prompts[i] for i in chosen]).embeds,
        row_bytes=encoder.spec.max_tokens * (2 * encoder.spec.embed_dim + 1),
        open=open_packed,
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
    raw, std, _ = encoded(
        vae,
        dataset,
        size,
        mirror=mirror,
        progress=progress,
        cache=cache,
        must_exist=must_exist,
        placement=placement,
    )
    return raw, std


def encoded(
    vae: VAE,
    dataset: ImageDataset,
    size: int | Size,
    *,
    mirror: bool = False,
    progress: Progress = silent,
    cache: Path | None = None,
    must_exist: bool = False,
    placement: Placement | None = None,
) -> tuple[Tensor | Rows, Tensor | Rows | None, list[int]]:
    """As `posteriors`, and the rows whose image could not be read or decoded."""
    job = latent_job(vae, dataset, size, mirror=mirror, progress=progress, placement=placement)
    entry: dict[str, Any] | None = None
    if not mirror:
        double = latent_job(vae, dataset, size, mirror=True, like=job, placement=placement)
        if store.find(cache or cache_dir(), double.facts, double.rows) is not None:
            both = double.run(cache)[1]
            entry = {
                name: Rows([shard[:, :1] for shard in rows.shards], rows.index) if name != "failed" else rows
                for name, rows in both.items()
            }
    if entry is None:
        entry = job.run(cache, must_exist=must_exist)[1]
    failed = entry["failed"][:].nonzero()[:, 0].tolist() if "failed" in entry else []
    return _resident(entry["raw_latents"]), _resident(entry["raw_std"]) if "raw_std" in entry else None, failed


def embeddings(
    encoder: TextEncoder,
    prompts: Sequence[str],
    *,
    progress: Progress = silent,
    cache: Path | None = None,
    must_exist: bool = False,
    placement: Placement | None = None,
) -> PromptEmbeds:
    """Embeddings of prompts, kept in 16 bits on disk and in memory. cache, must_exist: as for latents. Where
    half of the first prompts repeat others, as captions_base of many languages do, each text is encoded once."""
    if (sample := prompts[:REPEATS_SEEN_IN]) and 2 * len(set(sample)) <= len(sample):
        first, places = first_of_each(prompts)
        each = [prompts[row] for row in first.tolist()]
        distinct = embeddings(encoder, each, progress=progress, cache=cache, must_exist=must_exist, placement=placement)
        return PromptEmbeds(distinct.embeds[places], distinct.mask[places], distinct.truncated)
    job = embedding_job(encoder, prompts, progress=progress, placement=placement)
    _, tensors, _ = job.run(cache, must_exist=must_exist)
    return PromptEmbeds(_resident(tensors["embeds"]), _resident(tensors["mask"]), int(tensors["truncated"][:].sum()))  # type: ignore[arg-type]


def _resident(rows: Any) -> Any:
    """In memory where the whole tensor is small, padding included."""
    nbytes = 2 * rows.shape.numel() if isinstance(rows, PackedRows) else rows.nbytes
    return rows[:] if nbytes <= RESIDENT_BYTES else rows


def decoders() -> int:
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
