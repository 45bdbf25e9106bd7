"""Images with captions, a split that never moves, and a ledger of what was set aside.

Every data set is a table of three columns: `name` (identity), `captions` (list of str), `image` (encoded bytes).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from sanakit.data.images import decode
from sanakit.data.survey import Survey
from sanakit.registry import Registry

DATASETS: Registry[Callable[[], "ImageDataset"]] = Registry("datasets")

HELD_OUT_SHARE = 0.1
ORDER_SEED = 0  # of `evaluation_order`; another value moves every evaluation image
EVALUATED_BY = "captions by place"  # what `evaluation_captions` chooses by: results of another choice do not fit


@dataclass(kw_only=True)
class ImageDataset:
    """Encoded images with captions.

    source: the name it was asked for by. names/captions/images: equally long. ledger: what was set aside. scores: of
    every caption of every image, where the data has them. fit: how a square is made of an image that is none, `crop`
    or `pad`. survey: what reading the whole data set found beside the images. caption_kinds: what an image's first,
    second ... caption is, where the data set says so.
    """

    source: str
    names: list[str]
    captions: list[list[str]]
    images: list[bytes]
    ledger: list[dict[str, str]] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    fit: str = "crop"
    survey: Survey = field(default_factory=Survey)
    caption_kinds: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, captions, image bytes and the fit, in order."""
        digest = hashlib.sha256()
        for name, captions, image in zip(self.names, self.captions, self.images, strict=True):
            digest.update("\0".join([name, *captions]).encode())
            digest.update(hashlib.sha256(image).digest())
        if self.scores:
            digest.update(repr(self.scores).encode())
        if self.fit != "pad":  # all were padded before this could be chosen
            digest.update(self.fit.encode())
        return digest.hexdigest()

    def add(self, name: str, captions: list[str], image: bytes, scores: list[float] | None = None) -> None:
        """One image more; captions without words go, with their scores. Scores that do not count as many set it
        aside."""
        name = safe_name(name)
        if broken := next((caption for caption in captions if safe_name(caption) != caption), None):
            self.ledger.append({"name": name, "reason": f"a caption is not valid Unicode: {safe_name(broken)[:60]!r}"})
            return
        kept = [number for number, caption in enumerate(captions) if caption.strip()]
        numbers = [float(score) for score in scores or []]
        if numbers and len(numbers) != len(captions):
            self.ledger.append({"name": name, "reason": f"{len(numbers)} scores of {len(captions)} captions"})
            return
        if self.names and bool(numbers) != bool(self.scores):
            self.ledger.append({"name": name, "reason": "has no scores, others have" if self.scores else "has scores"})
            return
        self.names.append(name)
        self.captions.append([captions[number].strip() for number in kept])
        self.images.append(image)
        if numbers:
            self.scores.append([numbers[number] for number in kept])

    def set_aside(self, name: str, reason: str) -> None:
        self.ledger.append({"name": safe_name(name), "reason": safe_name(reason)})

    def subset(self, indices: list[int] | np.ndarray) -> "ImageDataset":
        return ImageDataset(
            source=self.source,
            names=[self.names[i] for i in indices],
            captions=[self.captions[i] for i in indices],
            images=[self.images[i] for i in indices],
            ledger=self.ledger,
            scores=[self.scores[i] for i in indices] if self.scores else [],
            fit=self.fit,
            survey=self.survey,
            caption_kinds=self.caption_kinds,
        )

    def evaluation_captions(self) -> list[str]:
        """The caption of every image that text is evaluated with: of the image at place i number i modulo its count,
        so that any first K images of the embedded world are evaluated half with plain titles, half with enriched
        captions."""
        return [captions[place % len(captions)] for place, captions in enumerate(self.captions)]

    def split(self, held_out: bool) -> "ImageDataset":
        """The training or the held-out split, in `evaluation_order`: its first K images are a random sample.

        An image's split and place depend on its name alone. They do not move when the order of the files changes, and
        images that are added or removed do not change the order of the others.
        """
        rows = [i for i, name in enumerate(self.names) if is_held_out(name) == held_out]
        return self.subset(sorted(rows, key=lambda i: evaluation_order(self.names[i])))

    def pixels(self, size: int | tuple[int, int]) -> np.ndarray:
        """(N, size, size, 3) uint8 by `fit`; (N, height, width, 3) cropped for a pair. Call `screen` first for images
        of unknown origin."""
        height, width = (size, size) if isinstance(size, int) else size
        out = np.empty((len(self), height, width, 3), np.uint8)
        for i, data in enumerate(self.images):
            out[i] = decode(data, size, self.fit)
        return out


def safe_name(name: str) -> str:
    """A name that UTF-8 can hold: lone surrogates, which stand for the bytes of file names in other encodings, are
    escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def is_held_out(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < HELD_OUT_SHARE * 2**64


def evaluation_order(name: str) -> bytes:
    """Sort key of an image within its split: a hash of its name and ORDER_SEED, independent of `is_held_out`.

    Data sets lie on disk sorted by class or source. Whatever evaluates the first K images of a split needs this order.
    """
    return hashlib.sha256(f"{ORDER_SEED}\0{name}".encode()).digest()


def read_parquet(path: Path, source: str, fit: str = "crop") -> ImageDataset:
    table = pd.read_parquet(path)
    return ImageDataset(
        source=source,
        names=table["name"].tolist(),
        captions=[list(c) for c in table["captions"]],
        images=table["image"].tolist(),
        fit=fit,
    )
