"""What training reads: latents and the embeddings of their captions, as the cache (data/cache.py) holds them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanakit.data.buckets import Bucketed, Size, aspects, assign
from sanakit.data.cache import Progress, embeddings, encoded, silent
from sanakit.data.decode import decode_rows
from sanakit.data.failures import Failures, no_failures
from sanakit.data.live import ImageEncoder, LiveCaptions, LiveLatents
from sanakit.data.packed import PackedRows
from sanakit.data.rows import Rows
from sanakit.data.table import ImageDataset
from sanakit.errors import SanakitError
from sanakit.placement import Placement, host
from sanakit.text_encoders import PromptEmbeds, TextEncoder
from sanakit.vaes import VAE

CHOICES = 1 << 30  # a caption is drawn as a number below this


@dataclass(kw_only=True)
class LatentDataset:
    """Normalised latents with their prompts, in memory or (large ones) memory-mapped and normalised when read.

    latents: (N, M, C, h, w), M views of an image; of several shapes where they lie in buckets. captions: every caption
    of every image. first, count: (N,) where an image's captions lie in `captions`. chances: (N, K) cumulative
    probability of an image's captions, where they are not equal. texts: the captions as they were written. spread: the
    posterior's standard deviation in the shape of `latents`, where they are drawn from it. failures: images that
    cannot be read, and what stands in for each.
    """

    names: Sequence[str]
    latents: Tensor | Rows | LiveLatents | Bucketed
    captions: PromptEmbeds | LiveCaptions
    first: Tensor
    count: Tensor
    chances: Tensor | None = None
    texts: Sequence[str] = ()
    spread: Tensor | Rows | LiveLatents | Bucketed | None = None
    failures: Failures = field(default_factory=no_failures)
    caption_kinds: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.latents)

    def draw(self, indices: Tensor, view: Tensor, generator: torch.Generator, seeds: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images and their views: means, or with `spread` drawn from the posteriors, by the
        seed of each row."""
        latents = self.latents[indices, view]
        self.failures.count_drawn(len(indices))
        if self.spread is not None:
            latents = latents + self.spread[indices, view].float() * row_noise(latents, generator, seeds)
        return latents

    def prompts(self, indices: Tensor, choice: Tensor) -> PromptEmbeds:
        """The embeddings of one caption of every index, of what stands in for an image that cannot be read."""
        drawn = self.captions[self.caption_rows(indices, choice)]
        return PromptEmbeds(drawn.embeds.float(), drawn.mask)

    def evaluation_prompts(self, indices: Tensor) -> PromptEmbeds:
        """The embeddings of `ImageDataset.evaluation_captions`."""
        resolved = self.failures.resolve(indices)
        drawn = self.captions[self.first[resolved] + indices % self.count[resolved]]
        return PromptEmbeds(drawn.embeds.float(), drawn.mask)

    def places_by_kind(self, count: int) -> dict[str, Tensor]:
        """Which of the first `count` images are evaluated with a caption of each kind; {} without kinds."""
        places = torch.arange(count)
        return {kind: places[n :: len(self.caption_kinds)] for n, kind in enumerate(self.caption_kinds)}

    def caption_rows(self, indices: Tensor, choice: Tensor) -> Tensor:
        """Of every image, or what stands in for it: caption number `choice` modulo the image's count; with scores by
        their chances, `choice` over CHOICES."""
        indices = self.failures.resolve(indices)
        if self.chances is None:
            number = choice % self.count[indices]
        else:
            number = (choice[:, None].double() / CHOICES >= self.chances[indices]).sum(
                1
            )  # float32 rounds the last to 1
        return self.first[indices] + number

    @contextmanager
    def encoders_held(self) -> Iterator[None]:
        """What encodes live stays on its device meanwhile: a batch moves no weights."""
        latents = self.latents.blocks if isinstance(self.latents, Bucketed) else [self.latents]
        with ExitStack() as held:
            for part in latents:
                if isinstance(part, LiveLatents):
                    held.enter_context(part.encoder.placement.holding(part.encoder.vae))
            if isinstance(self.captions, LiveCaptions):
                held.enter_context(self.captions.placement.holding(self.captions.encoder))
            yield

    @property
    def members(self) -> list[Tensor]:
        """The images of each bucket; empty where every image has one size."""
        return self.latents.members if isinstance(self.latents, Bucketed) else []


def first_images(data: LatentDataset, count: int) -> LatentDataset:
    """The first `count` images of a data set that is not in buckets, with their captions; what lies on disk stays
    there."""
    if len(data) <= count:
        return data
    rows, latents = slice(0, count), data.latents
    stop = int(data.first[count - 1] + data.count[count - 1])
    assert not isinstance(latents, Bucketed)
    if isinstance(data.captions, LiveCaptions):
        captions: Any = LiveCaptions(data.captions.encoder, data.texts[:stop], data.captions.placement)
    else:
        embeds = data.captions
        captions = PromptEmbeds(_head(embeds.embeds, stop), _head(embeds.mask, stop))
    return replace(
        data,
        names=data.names[rows],
        latents=_head(latents, count),
        captions=captions,
        first=data.first[rows],
        count=data.count[rows],
        chances=None if data.chances is None else data.chances[rows],
        texts=data.texts[:stop],
        spread=None,
        failures=no_failures(),
    )


def _head(rows: Any, count: int) -> Any:
    if isinstance(rows, Rows):
        return Rows(rows.shards, rows.index[:count], rows.finish)
    return rows.head(count) if isinstance(rows, PackedRows | LiveLatents) else rows[:count]


def row_noise(like: Tensor, generator: torch.Generator, seeds: Tensor) -> Tensor:
    """Normal numbers in the shape of `like`; a row's depend on its own seed alone."""
    noise = torch.empty_like(like)
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        row.normal_(generator=generator.manual_seed(seed))
    return noise


def caption_chances(scores: Sequence[list[float]], temperature: float) -> Tensor:
    """(N, K) cumulative softmax(score / temperature) over each image's captions, one from its last on (Sana, arXiv
    2410.10629)."""
    widest = max(len(s) for s in scores)
    padded = torch.full((len(scores), widest), -torch.inf, dtype=torch.float64)
    for row, image_scores in zip(padded, scores, strict=True):
        row[: len(image_scores)] = torch.tensor(image_scores, dtype=torch.float64) / temperature
    chances = padded.softmax(1).cumsum(1)
    last = torch.tensor([len(s) - 1 for s in scores])
    return torch.where(torch.arange(widest) >= last[:, None], 1.0, chances)


def build_dataset(
    vae: VAE,
    encoder: TextEncoder,
    dataset: ImageDataset,
    size: int,
    *,
    mirror: bool,
    progress: Progress = silent,
    cache: Path | None = None,
    temperature: float | None = None,
    buckets: Sequence[Size] = (),
    at_least: int = 1,
    sample_posterior: bool = False,
    live_latents: bool = False,
    live_embeddings: bool = False,
    max_set_aside: float = 0.05,
    placement: Placement | None = None,
) -> LatentDataset:
    """Latents and embeddings of images; with `cache` they must lie there already, as `sanakit encode` writes them.

    temperature: of the captions' scores, where the data has them. buckets: image sizes instead of `size` squared, each
    of `at_least` images. sample_posterior: latents are drawn from the posterior whenever they are read (SK0104 where
    the VAE has none). live_latents, live_embeddings: computed where a batch asks for them instead of once for all.
    max_set_aside: share of the images that may turn out to be unreadable, SK0402 past it. placement: where what the
    cache lacks, and what is live, is computed; by default the CPU.
    """
    placement = placement or host()
    options: dict[str, Any] = {"progress": progress, "cache": cache, "must_exist": cache is not None}
    options["placement"] = placement
    failures = Failures(dataset.names, max_set_aside)
    latents = partial(
        _latents, vae, mirror=mirror, live=live_latents, sample=sample_posterior, failures=failures, options=options
    )
    if buckets:
        sizes, members = bucketed(dataset, buckets, at_least)
        parts = [latents(dataset.subset(m.tolist()), bucket, m) for bucket, m in zip(sizes, members, strict=True)]
        means, stds = zip(*parts, strict=True)
        mean, spread = Bucketed(list(means), members), Bucketed(list(stds), members) if sample_posterior else None
    else:
        mean, spread = latents(dataset, size, None)
    if failures.reasons and len(failures.reasons) > max_set_aside * len(dataset):
        failures.drawn = len(dataset)
        raise failures.refusal()
    count = torch.from_numpy(dataset.caption_counts().astype("int64"))
    first = count.cumsum(0) - count
    texts = dataset.texts()
    return LatentDataset(
        names=dataset.names,
        latents=mean,
        captions=LiveCaptions(encoder, texts, placement) if live_embeddings else embeddings(encoder, texts, **options),
        first=first,
        count=count,
        chances=caption_chances(dataset.scores, temperature) if temperature and dataset.scores else None,
        texts=texts,
        spread=spread,
        failures=failures,
        caption_kinds=dataset.caption_kinds,
    )


def _latents(
    vae: VAE,
    images: ImageDataset,
    size: int | Size,
    members: Tensor | None,
    *,
    mirror: bool,
    live: bool,
    sample: bool,
    failures: Failures,
    options: dict[str, Any],
) -> tuple[Any, Any]:
    """Normalised latents of images, and their deviations where they are drawn from the posterior. members: the rows of
    `failures` that the images are, None for all."""

    def deviate(x: Tensor) -> Tensor:
        return x / vae.latents_std

    if live:
        encoder, views = ImageEncoder(vae, images, size, failures, members, options["placement"]), 2 if mirror else 1
        deviations = LiveLatents(encoder, views, deviate, deviations=True) if sample else None
        return LiveLatents(encoder, views, vae.normalize), deviations
    raw, std, failed = encoded(vae, images, size, mirror=mirror, **options)
    raw, std = _replaced(images, failed, failures, members, raw, std)
    if not sample:
        return _finished(raw, vae.normalize), None
    if std is None:
        raise SanakitError("SK0104", f"data.sample_posterior: {vae.name or 'this VAE'} has no posterior")
    return _finished(raw, vae.normalize), _finished(std, deviate)


def _replaced(
    images: ImageDataset, failed: list[int], failures: Failures, members: Tensor | None, *tensors: Any
) -> list[Any]:
    """Encoded tensors in which the next image that could be read stands in for each that could not."""
    if not failed or len(failed) == len(images):
        return list(tensors)
    reasons = decode_rows(images.subset(failed), 8)[1]  # why, as the cache does not keep it
    index, bad = torch.arange(len(images)), set(failed)
    for place, row in enumerate(failed):
        other = row
        while other in bad:
            other = (other + 1) % len(images)
        index[row] = other
        names = (row, other) if members is None else (int(members[row]), int(members[other]))
        failures.note(names[0], reasons.get(place, "could not be decoded when it was encoded"))
        failures.stand_in(*names)

    def chosen(rows: Any) -> Any:
        if rows is None:
            return None
        return rows[index] if isinstance(rows, Tensor) else Rows(rows.shards, rows.index[index], rows.finish)

    return [chosen(rows) for rows in tensors]


def bucketed(dataset: ImageDataset, buckets: Sequence[Size], at_least: int) -> tuple[list[Size], list[Tensor]]:
    """The sizes that training reads, and the images of each."""
    chosen = torch.tensor(assign(aspects(dataset), buckets, at_least))
    used = chosen.unique().tolist()
    return [buckets[number] for number in used], [(chosen == number).nonzero()[:, 0] for number in used]


def _finished(rows: Tensor | Rows, finish: Callable[[Tensor], Tensor]) -> Tensor | Rows:
    return finish(rows) if isinstance(rows, Tensor) else Rows(rows.shards, rows.index, finish)
