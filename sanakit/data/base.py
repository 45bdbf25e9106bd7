"""Pictures with captions, a split that never moves, and a ledger of what was set aside.

Every data set is a table of three columns: `name` (identity), `captions` (list of str), `image` (encoded bytes).
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from sanakit.errors import SanakitError
from sanakit.interop.files import cache_dir as cache_dir
from sanakit.registry import Registry

DATASETS: Registry[Callable[[], "Pictures"]] = Registry("datasets", "sanakit.data")

MAX_PIXELS = 64_000_000  # a decompression bomb is set aside before it is decoded
HELD_OUT_SHARE = 0.1
ORDER_SEED = 0  # of `evaluation_order`; another value moves every evaluation image
DECODERS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
SPARE = 2  # a JPEG is decoded at the smallest eighth that leaves this many times the size that is asked for
PREPROCESSING = f"Lanczos, JPEG at {SPARE}x"  # part of a cache's key


@dataclass(kw_only=True)
class Pictures:
    """Encoded pictures with captions.

    source: the name it was asked for by. names/captions/images: equally long. ledger: what was set aside. scores: of
    every caption of every picture, where the data has them.
    """

    source: str
    names: list[str]
    captions: list[list[str]]
    images: list[bytes]
    ledger: list[dict[str, str]] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, captions and picture bytes, in order."""
        digest = hashlib.sha256()
        for name, captions, image in zip(self.names, self.captions, self.images, strict=True):
            digest.update("\0".join([name, *captions]).encode())
            digest.update(hashlib.sha256(image).digest())
        if self.scores:
            digest.update(repr(self.scores).encode())
        return digest.hexdigest()

    def add(self, name: str, captions: list[str], image: bytes, scores: list[float] | None = None) -> None:
        """One picture more; captions without words go, with their scores. Scores that do not count as many set it aside."""
        name = safe_name(name)
        if broken := next((caption for caption in captions if safe_name(caption) != caption), None):
            self.ledger.append({"name": name, "reason": f"a caption is not valid Unicode: {safe_name(broken)[:60]!r}"})
            return
        kept = [number for number, caption in enumerate(captions) if caption.strip()]
        own = [float(score) for score in scores or []]
        if own and len(own) != len(captions):
            self.ledger.append({"name": name, "reason": f"{len(own)} scores of {len(captions)} captions"})
            return
        if self.names and bool(own) != bool(self.scores):
            self.ledger.append({"name": name, "reason": "has no scores, others have" if self.scores else "has scores"})
            return
        self.names.append(name)
        self.captions.append([captions[number].strip() for number in kept])
        self.images.append(image)
        if own:
            self.scores.append([own[number] for number in kept])

    def subset(self, indices: list[int] | np.ndarray) -> "Pictures":
        return Pictures(
            source=self.source,
            names=[self.names[i] for i in indices],
            captions=[self.captions[i] for i in indices],
            images=[self.images[i] for i in indices],
            ledger=self.ledger,
            scores=[self.scores[i] for i in indices] if self.scores else [],
        )

    def split(self, held_out: bool) -> "Pictures":
        """The training or the held-out split, in `evaluation_order`: its first K images are a random sample.

        An image's split and place depend on its name alone. They do not move when the order of the files changes, and
        images that are added or removed do not change the order of the others.
        """
        rows = [i for i, name in enumerate(self.names) if is_held_out(name) == held_out]
        return self.subset(sorted(rows, key=lambda i: evaluation_order(self.names[i])))

    def pixels(self, size: int | tuple[int, int]) -> np.ndarray:
        """(N, size, size, 3) uint8, fitted on white; (N, height, width, 3) cropped for a pair. Call `screen` first for
        pictures of unknown origin."""
        height, width = (size, size) if isinstance(size, int) else size
        out = np.empty((len(self), height, width, 3), np.uint8)
        for i, data in enumerate(self.images):
            out[i] = decode(data, size)
        return out


def safe_name(name: str) -> str:
    """A name that UTF-8 can hold: lone surrogates, which stand for the bytes of file names in other encodings, are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def is_held_out(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < HELD_OUT_SHARE * 2**64


def evaluation_order(name: str) -> bytes:
    """Sort key of an image within its split: a hash of its name and ORDER_SEED, independent of `is_held_out`.

    Data sets lie on disk sorted by class or source. Whatever evaluates the first K images of a split needs this order.
    """
    return hashlib.sha256(f"{ORDER_SEED}\0{name}".encode()).digest()


def decode(data: bytes, size: int | tuple[int, int]) -> np.ndarray:
    """(size, size, 3) uint8 sRGB: EXIF rotation applied, alpha on white, fitted without cropping; for a pair
    (height, width) scaled to cover it, the middle kept."""
    with Image.open(io.BytesIO(data), formats=DECODERS) as file:
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"{file.width} x {file.height} pixels, cap {MAX_PIXELS}")
        spare = SPARE * max(size if isinstance(size, tuple) else (size,))
        file.draft(None, (spare, spare))  # type: ignore[arg-type]
        ImageOps.exif_transpose(file, in_place=True)
        file.load()
        image: Image.Image = file
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if not isinstance(size, int):
        image = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)
    elif image.size != (size, size):
        image = ImageOps.pad(image, (size, size), Image.Resampling.LANCZOS, color="white")
    return np.asarray(image)


def screen(pictures: Pictures, *, max_set_aside: float) -> Pictures:
    """Drop what does not decode, with the reason in the ledger; SK0401 when nothing is left, SK0402 past the share."""
    keep, ledger = [], list(pictures.ledger)
    for i, (name, data) in enumerate(zip(pictures.names, pictures.images, strict=True)):
        try:
            decode(data, 8)
            if not any(caption.strip() for caption in pictures.captions[i]):
                raise ValueError("no caption")
            keep.append(i)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            ledger.append({"name": name, "reason": f"{type(error).__name__}: {error}"})
    total = len(keep) + len(ledger)
    if not keep:
        raise SanakitError("SK0401", f"{pictures.source}: {total} files, none a picture with a caption")
    if len(ledger) > max_set_aside * total:
        first = ledger[0]
        raise SanakitError(
            "SK0402",
            f"{len(ledger)} of {total} pictures set aside, at most {max_set_aside:.0%} expected; "
            f"first: {first['name']}: {first['reason']}",
        )
    result = pictures.subset(keep)
    result.ledger = ledger
    return result


def read_parquet(path: Path, source: str) -> Pictures:
    table = pd.read_parquet(path)
    return Pictures(
        source=source,
        names=table["name"].tolist(),
        captions=[list(c) for c in table["captions"]],
        images=table["image"].tolist(),
    )


def load_pictures(source: str, *, max_set_aside: float = 0.05) -> Pictures:
    """A registered data set, a folder of pictures with .txt captions, a .csv/.jsonl manifest, WebDataset .tar shards, .parquet
    files, a folder of `datasets.save_to_disk`, or `hf:owner/name[:split]`; shards and Parquet by an address too."""
    found = _read(source)
    return DATASETS.get(source)() if found is None else screen(found, max_set_aside=max_set_aside)


def _read(source: str) -> Pictures | None:
    from sanakit.data import files, tables

    path = Path(source).expanduser()
    if source.startswith("hf:"):
        return tables.read_hub_dataset(source.removeprefix("hf:"))
    if path.is_dir():
        return tables.read_saved_dataset(path) if tables.is_saved_dataset(path) else files.read_folder(path)
    if path.suffix == ".parquet":
        return tables.read_parquet_files(source)
    if path.suffix == ".tar":
        return files.read_shards(source)
    return files.read_manifest(path) if path.suffix in (".csv", ".jsonl") else None
