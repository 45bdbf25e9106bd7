"""What training reads: latents and the embeddings of their captions, as the cache (data/cache.py) holds them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanakit.data.buckets import Bucketed, Size, aspect, assign
from sanakit.data.cache import Progress, embeddings, posteriors, silent
from sanakit.data.store import Rows
from sanakit.data.table import ImageDataset
from sanakit.errors import SanakitError
from sanakit.placement import Placement
from sanakit.text_encoders import PromptEmbeds, TextEncoder
from sanakit.vaes import VAE

CHOICES = 1 << 30  # a caption is drawn as a number below this


@dataclass(kw_only=True)
class LatentDataset:
    """Normalised latents with their prompts, in memory or (large ones) memory-mapped and normalised when read.

    latents: (N, M, C, h, w), M views of an image; of several shapes where they lie in buckets. captions: every
    caption of every image. first, count: (N,) where an image's captions lie in `captions`. chances: (N, K) cumulative
    probability of an image's captions, where they are not equal. texts: the captions as they were written. spread:
    the posterior's standard deviation in the shape of `latents`, where they are drawn from it. caption_kinds: see
    `ImageDataset`.
    """

    names: list[str]
    latents: Tensor | Rows | Bucketed
    captions: PromptEmbeds
    first: Tensor
    count: Tensor
    chances: Tensor | None = None
    texts: list[str] = field(default_factory=list)
    spread: Tensor | Rows | Bucketed | None = None
    caption_kinds: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.latents)

    def draw(self, indices: Tensor, view: Tensor, generator: torch.Generator, seeds: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images and their views: means, or with `spread` drawn from the posteriors, by the
        seed of each row."""
        latents = self.latents[indices, view]
        if self.spread is not None:
            latents = latents + self.spread[indices, view].float() * row_noise(latents, generator, seeds)
        return latents

    def prompts(self, indices: Tensor, choice: Tensor) -> PromptEmbeds:
        """The embeddings of one caption of every index."""
        rows = self.caption_rows(indices, choice)
        return PromptEmbeds(self.captions.embeds[rows].float(), self.captions.mask[rows])

    def evaluation_prompts(self, indices: Tensor) -> PromptEmbeds:
        """The embeddings of `ImageDataset.evaluation_captions`."""
        rows = self.first[indices] + indices % self.count[indices]
        return PromptEmbeds(self.captions.embeds[rows].float(), self.captions.mask[rows])

    def places_by_kind(self, count: int) -> dict[str, Tensor]:
        """Which of the first `count` images are evaluated with a caption of each kind; {} without kinds."""
        places = torch.arange(count)
        return {kind: places[n :: len(self.caption_kinds)] for n, kind in enumerate(self.caption_kinds)}

    def caption_rows(self, indices: Tensor, choice: Tensor) -> Tensor:
        """Caption number `choice` modulo the image's count; with scores by their chances, `choice` over CHOICES."""
        if self.chances is None:
            number = choice % self.count[indices]
        else:
            number = (choice[:, None].double() / CHOICES >= self.chances[indices]).sum(
                1
            )  # float32 rounds the last to 1
        return self.first[indices] + number

    @property
    def members(self) -> list[Tensor]:
        """The images of each bucket; empty where every image has one size."""
        return self.latents.members if isinstance(self.latents, Bucketed) else []


def row_noise(like: Tensor, generator: torch.Generator, seeds: Tensor) -> Tensor:
    """Normal numbers in the shape of `like`; a row's depend on its own seed alone."""
    noise = torch.empty_like(like)
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        row.normal_(generator=generator.manual_seed(seed))
    return noise


def caption_chances(scores: list[list[float]], temperature: float) -> Tensor:
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
    placement: Placement | None = None,
) -> LatentDataset:
    """Latents and embeddings of images; with `cache` they must lie there already, as `sanakit encode` writes them.

    temperature: of the captions' scores, where the data has them. buckets: image sizes instead of `size` squared, each
    of `at_least` images. sample_posterior: latents are drawn from the posterior whenever they are read (SK0104 where
    the VAE has none). placement: where what the cache lacks is computed, by default the CPU.
    """
    options: dict[str, Any] = {
        "progress": progress,
        "cache": cache,
        "must_exist": cache is not None,
        "placement": placement,
    }

    def latents(some: ImageDataset, side: int | Size) -> tuple[Tensor | Rows, Tensor | Rows | None]:
        raw, std = posteriors(vae, some, side, mirror=mirror, **options)
        if not sample_posterior:
            return _finished(raw, vae.normalize), None
        if std is None:
            raise SanakitError("SK0104", f"data.sample_posterior: {vae.name or 'this VAE'} has no posterior")
        return _finished(raw, vae.normalize), _finished(std, lambda x: x / vae.latents_std)

    mean: Tensor | Rows | Bucketed
    spread: Tensor | Rows | Bucketed | None
    if buckets:
        sizes, members = bucketed(dataset, buckets, at_least)
        parts = [
            latents(dataset.subset(m.tolist()), bucket_size) for bucket_size, m in zip(sizes, members, strict=True)
        ]
        means, stds = zip(*parts, strict=True)
        mean, spread = Bucketed(list(means), members), Bucketed(list(stds), members) if sample_posterior else None
    else:
        mean, spread = latents(dataset, size)
    count = torch.tensor([len(c) for c in dataset.captions])
    texts = [caption for captions in dataset.captions for caption in captions]
    return LatentDataset(
        names=dataset.names,
        latents=mean,
        captions=embeddings(encoder, texts, **options),
        first=count.cumsum(0) - count,
        count=count,
        chances=caption_chances(dataset.scores, temperature) if temperature and dataset.scores else None,
        texts=texts,
        spread=spread,
        caption_kinds=dataset.caption_kinds,
    )


def bucketed(dataset: ImageDataset, buckets: Sequence[Size], at_least: int) -> tuple[list[Size], list[Tensor]]:
    """The sizes that training reads, and the images of each."""
    chosen = torch.tensor(assign([aspect(image) for image in dataset.images], buckets, at_least))
    used = chosen.unique().tolist()
    return [buckets[number] for number in used], [(chosen == number).nonzero()[:, 0] for number in used]


def _finished(rows: Tensor | Rows, finish: Callable[[Tensor], Tensor]) -> Tensor | Rows:
    return finish(rows) if isinstance(rows, Tensor) else Rows(rows.shards, rows.index, finish)
