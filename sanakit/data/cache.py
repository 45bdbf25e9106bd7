"""Raw latents and embeddings, computed once and kept in a content-addressed store (data/store.py).

A row's key: weights, class and geometry of the encoder, bytes of the picture (or the caption), size, preprocessing,
mirroring, and the major versions of torch, diffusers and transformers. Kept are the posterior's mean and, where there is a
posterior, its standard deviation, both raw, so that another normalisation never rebuilds a cache. An entry that was found
is spot-checked: a few rows are computed again before anything is trained on it.
"""

import functools
import importlib.metadata
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanakit.data import store
from sanakit.data.base import PREPROCESSING, Pictures, cache_dir
from sanakit.data.buckets import Bucketed, Size, aspect, assign
from sanakit.data.store import Rows
from sanakit.drift.pictures import SIDE
from sanakit.errors import SanakitError
from sanakit.text_encoders import PromptEmbeds, TextEncoder
from sanakit.vaes import VAE

BATCH_SIZE = 32
PROMPT_BATCH = 128
CHOICES = 1 << 30  # a caption is drawn as a number below this
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

    def run(self, cache: Path | None = None, *, must_exist: bool = False) -> tuple[store.Entry, dict[str, Rows], bool]:
        """The entry, its tensors, and whether it was found. A found one is spot-checked; SK0404 where it must exist
        but does not, with the fields that differ."""
        root = cache or cache_dir()
        found = store.find(root, self.facts, self.rows)
        if found is None:
            if must_exist:
                store.refuse_other(root, self.facts)
            entry = store.write(root, self.facts, self.rows, self.compute, row_bytes=self.row_bytes)
            shards, where = entry.read(), torch.arange(len(self.rows))
        else:
            entry, shards, where = found
            every = Rows(shards[self.checked], torch.arange(entry.manifest["count"]))
            store.spot_check(entry, where, every.__getitem__, self.again)
        tensors = {name: Rows(parts, where) for name, parts in shards.items() if name != "rows"}
        return entry, tensors, found is not None


def latent_job(
    vae: VAE,
    pictures: Pictures,
    size: int | Size,
    *,
    mirror: bool = False,
    progress: Progress = silent,
    like: Job | None = None,
) -> Job:
    """raw_latents (N, M, C, h, w) float32; M is 2 with the mirrored picture second; raw_std bfloat16, where the VAE has a
    posterior. like: a job of the same VAE, pictures and size, whose hashes are taken over."""
    views = 2 if mirror else 1
    sides = (size, size) if isinstance(size, int) else size

    def encode(images: Tensor) -> dict[str, Tensor]:
        seen = (images, images.flip(-1)) if mirror else (images,)
        means, stds = zip(*(vae.encode_posterior(view) for view in seen), strict=True)
        found = {"raw_latents": torch.stack(means, 1)}
        return found if stds[0] is None else found | {"raw_std": torch.stack(stds, 1).bfloat16()}

    def compute(part: range) -> dict[str, Tensor]:
        rows = []
        chunks = [part[i : i + BATCH_SIZE] for i in range(0, len(part), BATCH_SIZE)]
        for chunk, pixels in read_ahead(chunks, lambda c: pictures.subset(c).pixels(size), _decoders()):
            rows.append(encode(to_images(pixels)))
            progress(f"encoding with {vae.name or 'the VAE'}", chunk.stop, len(pictures))
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    return Job(
        facts={
            "kind": "latents",
            "encoder": like.facts["encoder"] if like else vae.fingerprint(),
            "size": size if isinstance(size, int) else list(size),
            "mirror": mirror,
            "preprocessing": PREPROCESSING,
            "mode": "posterior mean and std",  # the std where there is a posterior
            "dtype": "float32",
            "libraries": _versions(),
        },
        rows=like.rows if like else store.row_hashes(pictures.images),
        compute=compute,
        checked="raw_latents",
        again=lambda chosen: encode(to_images(pictures.subset(chosen).pixels(size)))["raw_latents"],
        row_bytes=6 * views * torch.Size(vae.spec.shape(*sides)).numel(),
    )


def small_pictures(pictures: Pictures, size: int, *, progress: Progress = silent) -> Tensor:
    """(N, s, s, 3) uint8, s at most drift.pictures.SIDE: what a page about drift shows; training never reads it."""
    parts, rows = [], range(len(pictures))
    chunks = [rows[start : start + PROMPT_BATCH] for start in range(0, len(rows), PROMPT_BATCH)]
    for chunk, pixels in read_ahead(chunks, lambda c: pictures.subset(c).pixels(min(size, SIDE)), _decoders()):
        parts.append(torch.from_numpy(pixels))
        progress("keeping small pictures", chunk.stop, len(pictures))
    return torch.cat(parts)


def embedding_job(encoder: TextEncoder, prompts: list[str], *, progress: Progress = silent) -> Job:
    """embeds (N, L, D) float16, mask (N, L) bool, truncated (N,): a batch's count of prompts cut short, in its first row."""

    def encode(some: list[str]) -> dict[str, Tensor]:
        part = encoder.encode(some)
        embeds = part.embeds.half()
        if not embeds.isfinite().all():
            raise SanakitError("SK0301", f"{encoder.name} gives embeddings that are not finite in half precision")
        truncated = torch.zeros(len(some), dtype=torch.int64)
        truncated[0] = part.truncated
        return {"embeds": embeds, "mask": part.mask, "truncated": truncated}

    def compute(part: range) -> dict[str, Tensor]:
        batches = []
        for start in range(part.start, part.stop, PROMPT_BATCH):
            stop = min(start + PROMPT_BATCH, part.stop)
            batches.append(encode(prompts[start:stop]))
            progress(f"encoding prompts with {encoder.name or 'the text encoder'}", stop, len(prompts))
        return {name: torch.cat([b[name] for b in batches]) for name in batches[0]}

    return Job(
        facts={
            "kind": "embeddings",
            "encoder": encoder.fingerprint(),
            "dtype": "float16",
            "libraries": _versions(),
        },
        rows=store.row_hashes(p.encode() for p in prompts),
        compute=compute,
        checked="embeds",
        again=lambda chosen: encode([prompts[i] for i in chosen])["embeds"],
        row_bytes=encoder.spec.max_tokens * (2 * encoder.spec.embed_dim + 1),
    )


def raw_latents(
    vae: VAE,
    pictures: Pictures,
    size: int | Size,
    *,
    mirror: bool = False,
    progress: Progress = silent,
    cache: Path | None = None,
    must_exist: bool = False,
) -> Tensor | Rows:
    """Raw latents (N, M, C, h, w); M is 2 with the mirrored picture second. Computed once, then read.

    cache: folder of the store, by default the user's. must_exist: SK0404 names what differs instead of encoding.
    """
    return posteriors(vae, pictures, size, mirror=mirror, progress=progress, cache=cache, must_exist=must_exist)[0]


def posteriors(
    vae: VAE,
    pictures: Pictures,
    size: int | Size,
    *,
    mirror: bool = False,
    progress: Progress = silent,
    cache: Path | None = None,
    must_exist: bool = False,
) -> tuple[Tensor | Rows, Tensor | Rows | None]:
    """Raw latents as above, and the posterior's standard deviation (bfloat16), None where the VAE has no posterior."""
    job = latent_job(vae, pictures, size, mirror=mirror, progress=progress)
    found: dict[str, Rows] | None = None
    if not mirror:
        double = latent_job(vae, pictures, size, mirror=True, like=job)
        if store.find(cache or cache_dir(), double.facts, double.rows) is not None:
            both = double.run(cache)[1]
            found = {name: Rows([shard[:, :1] for shard in rows.shards], rows.index) for name, rows in both.items()}
    if found is None:
        found = job.run(cache, must_exist=must_exist)[1]
    return _resident(found["raw_latents"]), _resident(found["raw_std"]) if "raw_std" in found else None


def embeddings(
    encoder: TextEncoder,
    prompts: list[str],
    *,
    progress: Progress = silent,
    cache: Path | None = None,
    must_exist: bool = False,
) -> PromptEmbeds:
    """Embeddings of prompts, kept in half precision on disk and in memory. cache, must_exist: as for latents."""
    _, found, _ = embedding_job(encoder, prompts, progress=progress).run(cache, must_exist=must_exist)
    return PromptEmbeds(_resident(found["embeds"]), _resident(found["mask"]), int(found["truncated"][:].sum()))  # type: ignore[arg-type]


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


@dataclass(kw_only=True)
class LatentDataset:
    """Normalised latents with their prompts, in memory or (large ones) memory-mapped and normalised when read.

    latents: (N, M, C, h, w), M views of a picture; of several shapes where they lie in buckets. captions: every caption
    of every picture. first, count: (N,) where a picture's captions lie in `captions`. chances: (N, K) cumulative
    probability of a picture's captions, where they are not equal. texts: the captions as they were written. spread: the
    posterior's standard deviation in the shape of `latents`, where they are drawn from it.
    """

    names: list[str]
    latents: Tensor | Rows | Bucketed
    captions: PromptEmbeds
    first: Tensor
    count: Tensor
    chances: Tensor | None = None
    texts: list[str] = field(default_factory=list)
    spread: Tensor | Rows | Bucketed | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def draw(self, indices: Tensor, view: Tensor, generator: torch.Generator, seeds: Tensor) -> Tensor:
        """Latents (B, C, h, w) of pictures and their views: means, or with `spread` drawn from the posteriors, by the seed
        of each row."""
        latents = self.latents[indices, view]
        if self.spread is not None:
            latents = latents + self.spread[indices, view].float() * row_noise(latents, generator, seeds)
        return latents

    def prompts(self, indices: Tensor, choice: Tensor) -> PromptEmbeds:
        """The embeddings of one caption of every index."""
        rows = self.caption_rows(indices, choice)
        return PromptEmbeds(self.captions.embeds[rows].float(), self.captions.mask[rows])

    def caption_rows(self, indices: Tensor, choice: Tensor) -> Tensor:
        """Caption number `choice` modulo the picture's count; with scores by their chances, `choice` over CHOICES."""
        if self.chances is None:
            number = choice % self.count[indices]
        else:
            number = (choice[:, None] / CHOICES >= self.chances[indices]).sum(1)
        return self.first[indices] + number

    @property
    def members(self) -> list[Tensor]:
        """The pictures of each bucket; empty where every picture has one size."""
        return self.latents.members if isinstance(self.latents, Bucketed) else []


def row_noise(like: Tensor, generator: torch.Generator, seeds: Tensor) -> Tensor:
    """Normal numbers in the shape of `like`; a row's depend on its own seed alone."""
    noise = torch.empty_like(like)
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        row.normal_(generator=generator.manual_seed(seed))
    return noise


def caption_chances(scores: list[list[float]], temperature: float) -> Tensor:
    """(N, K) cumulative softmax(score / temperature) over each picture's captions, one from its last on (Sana, arXiv
    2410.10629)."""
    widest = max(len(s) for s in scores)
    padded = torch.full((len(scores), widest), -torch.inf, dtype=torch.float64)
    for row, own in zip(padded, scores, strict=True):
        row[: len(own)] = torch.tensor(own, dtype=torch.float64) / temperature
    chances = padded.softmax(1).cumsum(1)
    last = torch.tensor([len(s) - 1 for s in scores])
    return torch.where(torch.arange(widest) >= last[:, None], 1.0, chances)


def build_dataset(
    vae: VAE,
    encoder: TextEncoder,
    pictures: Pictures,
    size: int,
    *,
    mirror: bool,
    progress: Progress = silent,
    cache: Path | None = None,
    temperature: float | None = None,
    buckets: Sequence[Size] = (),
    at_least: int = 1,
    sample_posterior: bool = False,
) -> LatentDataset:
    """Latents and embeddings of pictures; with `cache` they must lie there already, as `sanakit encode` writes them.

    temperature: of the captions' scores, where the data has them. buckets: picture sizes instead of `size` squared, each
    of `at_least` pictures. sample_posterior: latents are drawn from the posterior whenever they are read (SK0104 where the
    VAE has none).
    """
    options: dict[str, Any] = {"progress": progress, "cache": cache, "must_exist": cache is not None}

    def latents(some: Pictures, side: int | Size) -> tuple[Tensor | Rows, Tensor | Rows | None]:
        raw, std = posteriors(vae, some, side, mirror=mirror, **options)
        if not sample_posterior:
            return _finished(raw, vae.normalize), None
        if std is None:
            raise SanakitError("SK0104", f"data.sample_posterior: {vae.name or 'this VAE'} has no posterior")
        return _finished(raw, vae.normalize), _finished(std, lambda x: x / vae.latents_std)

    mean: Tensor | Rows | Bucketed
    spread: Tensor | Rows | Bucketed | None
    if buckets:
        sizes, members = bucketed(pictures, buckets, at_least)
        parts = [latents(pictures.subset(m.tolist()), own) for own, m in zip(sizes, members, strict=True)]
        means, stds = zip(*parts, strict=True)
        mean, spread = Bucketed(list(means), members), Bucketed(list(stds), members) if sample_posterior else None
    else:
        mean, spread = latents(pictures, size)
    count = torch.tensor([len(c) for c in pictures.captions])
    texts = [caption for captions in pictures.captions for caption in captions]
    return LatentDataset(
        names=pictures.names,
        latents=mean,
        captions=embeddings(encoder, texts, **options),
        first=count.cumsum(0) - count,
        count=count,
        chances=caption_chances(pictures.scores, temperature) if temperature and pictures.scores else None,
        texts=texts,
        spread=spread,
    )


def bucketed(pictures: Pictures, buckets: Sequence[Size], at_least: int) -> tuple[list[Size], list[Tensor]]:
    """The sizes that training reads, and the pictures of each."""
    chosen = torch.tensor(assign([aspect(image) for image in pictures.images], buckets, at_least))
    used = chosen.unique().tolist()
    return [buckets[number] for number in used], [(chosen == number).nonzero()[:, 0] for number in used]


def _finished(rows: Tensor | Rows, finish: Callable[[Tensor], Tensor]) -> Tensor | Rows:
    return finish(rows) if isinstance(rows, Tensor) else Rows(rows.shards, rows.index, finish)
