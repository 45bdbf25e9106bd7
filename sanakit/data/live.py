"""Latents and embeddings computed when a batch asks for them: nothing of a data set is kept in memory or on disk.

They read as what the cache holds: `latents[rows, view]` gives the same numbers up to the rounding of other batch sizes,
and embeddings are rounded to half precision as the cache keeps them.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sanakit.batching import in_batches
from sanakit.data.buckets import Size
from sanakit.data.failures import Failures
from sanakit.data.readable import ReadableImages
from sanakit.data.table import ImageDataset
from sanakit.errors import SanakitError
from sanakit.placement import Placement, host
from sanakit.text_encoders import PromptEmbeds, TextEncoder
from sanakit.text_encoders.base import as_kept
from sanakit.vaes import VAE

ENCODED_AT_ONCE = 32  # images, and prompts, of one pass through an encoder


class ImageEncoder:
    """Images of a data set through a VAE, by row and view. members: the rows of `failures` that the images are, where
    they are a bucket. placement: where the VAE computes, by default the CPU."""

    def __init__(
        self,
        vae: VAE,
        images: ImageDataset,
        size: int | Size,
        failures: Failures,
        members: Tensor | None = None,
        placement: Placement | None = None,
    ) -> None:
        self.vae, self.images, self.size, self.failures = vae, images, size, failures
        self.placement = placement or host()
        self.readable = ReadableImages(images, size, failures, None if members is None else members.tolist())
        self._last = threading.local()  # the batch encoded last: means and deviations are asked for one after the other

    def encode(self, rows: list[int], mirrored: list[bool]) -> tuple[Tensor, Tensor | None]:
        """Raw latents (B, C, h, w) and, where there is a posterior, its standard deviation."""
        key = (tuple(rows), tuple(mirrored))
        if getattr(self._last, "key", None) != key:
            self._last.value, self._last.key = self._encode(rows, mirrored), key
        value: tuple[Tensor, Tensor | None] = self._last.value
        return value

    def _encode(self, rows: list[int], mirrored: list[bool]) -> tuple[Tensor, Tensor | None]:
        means, stds = [], []
        pixels = self.readable.pixels(rows)
        for start in range(0, len(rows), ENCODED_AT_ONCE):
            part = slice(start, start + ENCODED_AT_ONCE)
            images = torch.from_numpy(pixels[part]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            flipped = torch.tensor(mirrored[part])
            images[flipped] = images[flipped].flip(-1)
            with self.placement.holding(self.vae):
                mean, std = self.vae.encode_posterior(images)
            means.append(mean)
            stds.append(std)
        return torch.cat(means), None if stds[0] is None else torch.cat([std for std in stds if std is not None])


class LiveLatents:
    """What `store.Rows` is over a cache: a tensor (N, M, C, h, w) that is encoded where it is read. deviations: give
    the posterior's standard deviation instead of the mean."""

    def __init__(
        self, encoder: ImageEncoder, views: int, finish: Callable[[Tensor], Tensor], *, deviations: bool = False
    ) -> None:
        self.encoder, self.finish, self.deviations = encoder, finish, deviations
        sides = (encoder.size, encoder.size) if isinstance(encoder.size, int) else encoder.size
        self.shape = torch.Size((len(encoder.images), views, *encoder.vae.spec.shape(*sides)))

    def __len__(self) -> int:
        return self.shape[0]

    def head(self, count: int) -> "LiveLatents":
        """The first `count` rows."""
        whole = self.encoder
        images = whole.images.subset(range(min(count, len(self))))
        failures = Failures(images.names, whole.failures.max_set_aside)
        encoder = ImageEncoder(whole.vae, images, whole.size, failures, placement=whole.placement)
        return LiveLatents(encoder, self.shape[1], self.finish, deviations=self.deviations)

    def __getitem__(self, key: Any) -> Tensor:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        where = torch.arange(len(self))[first]
        rows, views = where.reshape(-1), self.shape[1]
        if rest and isinstance(rest[0], Tensor):
            wanted, kept = rest[0].expand(where.shape).reshape(-1, 1), False
        elif rest and isinstance(rest[0], int):
            wanted, kept = torch.full((len(rows), 1), rest[0] % views), False
        else:
            chosen = torch.arange(views)[rest[0]] if rest else torch.arange(views)
            wanted, kept = chosen.expand(len(rows), len(chosen)), True
        count = wanted.shape[1]
        means, stds = self.encoder.encode(
            rows.repeat_interleave(count).tolist(), [bool(view) for view in wanted.reshape(-1).tolist()]
        )
        values = stds if self.deviations else means
        if values is None:
            raise SanakitError(
                "SK0104", f"data.sample_posterior: {self.encoder.vae.name or 'this VAE'} has no posterior"
            )
        out = self.finish(values.bfloat16() if self.deviations else values)
        out = out.contiguous()  # noise is drawn in the order of the memory
        out = out.reshape(*where.shape, *([count] if kept else []), *out.shape[1:])
        return (
            out[(*(slice(None) for _ in where.shape), *([slice(None)] if kept else []), *rest[1:])] if rest[1:] else out
        )


class LiveCaptions:
    """What `PromptEmbeds` of a whole data set is: embeddings of captions, encoded where they are read. placement: where
    the encoder computes, by default the CPU."""

    def __init__(self, encoder: TextEncoder, texts: Sequence[str], placement: Placement | None = None) -> None:
        self.encoder, self.texts, self.placement = encoder, texts, placement or host()

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: Tensor | slice) -> PromptEmbeds:
        rows = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        texts = [self.texts[row] for row in rows]
        with self.placement.holding(self.encoder):
            what = f"encoding prompts with {self.encoder.name or 'the text encoder'}"
            parts, _ = in_batches(texts, ENCODED_AT_ONCE, self.encoder.encode, what=what)
        embeds = torch.cat([as_kept(part.embeds, self.encoder) for part in parts])
        return PromptEmbeds(embeds, torch.cat([part.mask for part in parts]), sum(part.truncated for part in parts))


CaptionRows = PromptEmbeds | LiveCaptions  # embeddings of many captions, read by row
