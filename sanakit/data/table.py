"""Images with captions, a split that never moves, and a ledger of what was set aside.

Every data set is a table of three columns: `name` (identity), `captions` (list of str), `image` (encoded bytes).
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sanakit.data.images import decode
from sanakit.data.indexed import Column, Images, Indexed, Texts
from sanakit.data.names import evaluation_order, is_held_out
from sanakit.data.survey import Survey
from sanakit.registry import Registry

DATASETS: Registry[Callable[[], "ImageDataset"]] = Registry("datasets")

EVALUATED_BY = "captions by place"  # what `evaluation_captions` chooses by: results of another choice do not fit


@dataclass(kw_only=True, repr=False)
class ImageDataset:
    """Encoded images with captions.

    source: the name it was asked for by. names/captions/images: equally long; read from files when they are asked for
    where the data set has an index. captions_base: what the base reads in the place of the captions, as in another
    language, equally many of every image; empty where both sides read the same. ledger: what was set aside. scores: of
    every caption of every image, where the data has them. fit: how a square is made of an image that is none, `crop` or
    `pad`. survey: what reading the whole data set found beside the images. indexed: the rows of its index
    (data/index.py), None for images in memory. caption_kinds: what an image's first, second ... caption is, where the
    data set says so.
    """

    source: str
    names: Sequence[str]
    captions: Sequence[list[str]]
    images: Sequence[bytes]
    ledger: list[dict[str, str]] = field(default_factory=list)
    scores: Sequence[list[float]] = field(default_factory=list)
    fit: str = "crop"
    survey: Survey = field(default_factory=Survey)
    indexed: Indexed | None = None
    caption_kinds: tuple[str, ...] = ()
    captions_base: Sequence[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.indexed is not None and not isinstance(self.captions, Column):
            self.indexed = None  # captions of the caller's own: the index no longer says what the rows are

    @classmethod
    def of_index(
        cls, indexed: Indexed, *, scored: bool, translated: bool = False, column: str = "captions", **options: Any
    ) -> "ImageDataset":
        """The rows of an index. scored: whether every caption has a score. translated: whether the base reads others.
        column: of the captions. options: the other fields."""
        return cls(
            names=Column(indexed, "name"),
            captions=Column(indexed, column),
            images=Images(indexed),
            scores=Column(indexed, "scores") if scored else [],
            captions_base=Column(indexed, "captions_base") if translated else [],
            indexed=indexed,
            **options,
        )

    def __len__(self) -> int:
        return len(self.names)

    def for_base(self) -> "ImageDataset":
        """The same images with the captions that the base reads; itself where both sides read the same."""
        return replace(self, captions=self.captions_base, captions_base=[]) if self.captions_base else self

    def __repr__(self) -> str:
        return f"<ImageDataset {self.source}: {len(self)} images, {len(self.ledger)} set aside>"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, captions of both sides, image bytes and the fit, in order."""
        if self.indexed is None:
            return self._fingerprint(hashlib.sha256(image).digest() for image in self.images)
        hashes = Column(self.indexed, "sha256")
        of_base = "" if self._column == "captions" else f" {self._column}"
        return str(self.indexed.recall(f"fingerprint {self.fit}{of_base}", lambda: self._fingerprint(hashes)))

    @property
    def _column(self) -> str:
        """Of the index, which the captions are."""
        return self.captions.name if isinstance(self.captions, Column) else "captions"

    def _fingerprint(self, hashes: Iterable[bytes]) -> str:
        digest = hashlib.sha256()
        for name, captions, image in zip(self.names, self.captions, hashes, strict=True):
            digest.update("\0".join([name, *captions]).encode())
            digest.update(image)
        if self.scores:
            digest.update(repr(list(self.scores)).encode())
        if self.captions_base:
            digest.update(repr(list(self.captions_base)).encode())
        if self.fit != "pad":  # all were padded before this could be chosen
            digest.update(self.fit.encode())
        return digest.hexdigest()

    def caption_counts(self) -> np.ndarray:
        """Captions of every image. (n,)"""
        if self.indexed is not None:
            return self.indexed.caption_counts()
        return np.array([len(captions) for captions in self.captions], dtype=np.int64)

    def texts(self) -> Sequence[str]:
        """Every caption of every image, one after the other."""
        if self.indexed is not None:
            return Texts(self.indexed, self._column)
        return [caption for captions in self.captions for caption in captions]

    def sizes(self) -> np.ndarray | None:
        """(n, 2) width and height of every image as it is shown; None where they were not read."""
        if self.indexed is not None:
            return np.stack([self.indexed.numbers("width"), self.indexed.numbers("height")], 1)
        known = self.survey.sizes
        return np.array(known).reshape(-1, 2) if len(known) == len(self) else None

    def subset(self, indices: Sequence[int] | np.ndarray) -> "ImageDataset":
        if self.indexed is not None:
            kept: dict[str, Any] = {"source": self.source, "ledger": self.ledger, "survey": self.survey}
            kept |= {"fit": self.fit, "caption_kinds": self.caption_kinds, "column": self._column}
            kept |= {"scored": bool(self.scores), "translated": bool(self.captions_base)}
            return ImageDataset.of_index(self.indexed.take(indices), **kept)
        return ImageDataset(
            source=self.source,
            names=[self.names[i] for i in indices],
            captions=[self.captions[i] for i in indices],
            images=[self.images[i] for i in indices],
            ledger=self.ledger,
            scores=[self.scores[i] for i in indices] if self.scores else [],
            fit=self.fit,
            survey=self._survey_of(indices),
            caption_kinds=self.caption_kinds,
            captions_base=[self.captions_base[i] for i in indices] if self.captions_base else [],
        )

    def _survey_of(self, indices: Sequence[int] | np.ndarray) -> Survey:
        """What reading the whole data set found, with the sizes of these images."""
        known = self.survey.sizes
        sizes = [known[i] for i in indices] if len(known) == len(self) else []
        return replace(self.survey, sizes=sizes)

    def evaluation_captions(self, places: Iterable[int] | None = None) -> list[str]:
        """The caption of every image that text is evaluated with: of the image at place i number i modulo its count,
        so that any first K images of the embedded world are evaluated half with plain titles, half with enriched
        captions. places: of some images, by default of all."""
        if places is None:
            return [captions[place % len(captions)] for place, captions in enumerate(self.captions)]
        return [(choices := self.captions[place])[place % len(choices)] for place in places]

    def split(self, held_out: bool) -> "ImageDataset":
        """The training or the held-out split, in `evaluation_order`: its first K images are a random sample.

        An image's split and place depend on its name alone. They do not move when the order of the files changes, and
        images that are added or removed do not change the order of the others.
        """
        if self.indexed is not None:
            return self.subset(self._split_of_index(self.indexed, held_out))
        rows = [i for i, name in enumerate(self.names) if is_held_out(name) == held_out]
        return self.subset(sorted(rows, key=lambda i: evaluation_order(self.names[i])))

    def _split_of_index(self, indexed: Indexed, held_out: bool) -> np.ndarray:
        """The same by the columns of the index; names are read only where the first 8 bytes of two keys are equal."""
        order = indexed.numbers("order")
        rows = np.flatnonzero(indexed.numbers("held_out") == held_out)
        rows = rows[np.argsort(order[rows])]
        sorted_order = order[rows]
        for first in np.flatnonzero(sorted_order[1:] == sorted_order[:-1]).tolist():
            run = slice(first, first + 2)  # two in a row; three keys of equal 8 bytes do not occur
            rows[run] = sorted(rows[run].tolist(), key=lambda i: evaluation_order(self.names[i]))
        return rows

    def pixels(self, size: int | tuple[int, int]) -> np.ndarray:
        """(N, size, size, 3) uint8 by `fit`; (N, height, width, 3) cropped for a pair. Raises ValueError or what Pillow
        raises for an image that cannot be decoded."""
        height, width = (size, size) if isinstance(size, int) else size
        out = np.empty((len(self), height, width, 3), np.uint8)
        for i, data in enumerate(self.images):
            out[i] = decode(data, size, self.fit)
        return out


def read_parquet(path: Path, source: str, fit: str = "crop") -> ImageDataset:
    table = pd.read_parquet(path)
    return ImageDataset(
        source=source,
        names=table["name"].tolist(),
        captions=[list(c) for c in table["captions"]],
        images=table["image"].tolist(),
        fit=fit,
    )
