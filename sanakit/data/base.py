"""Pictures with captions, a split that never moves, and a ledger of what was set aside.

Every data set is a table of three columns: `name` (identity), `captions` (list of str), `image` (encoded bytes).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd

from sanakit.data.captions import MODES
from sanakit.data.images import FITS, decode, open_image
from sanakit.data.survey import Survey, reason_of, write_ledger
from sanakit.errors import SanakitError, did_you_mean
from sanakit.interop.files import cache_dir as cache_dir
from sanakit.registry import Registry

DATASETS: Registry[Callable[[], "Pictures"]] = Registry("datasets", "sanakit.data")

HELD_OUT_SHARE = 0.1
ORDER_SEED = 0  # of `evaluation_order`; another value moves every evaluation image
JUDGED_BY = "captions by place"  # what `evaluation_captions` chooses by: results that were judged otherwise do not fit
SCREENED = 8  # pixels of a side: a JPEG is screened at its smallest scale, all of its bytes read


@dataclass(kw_only=True)
class Pictures:
    """Encoded pictures with captions.

    source: the name it was asked for by. names/captions/images: equally long. ledger: what was set aside. scores: of
    every caption of every picture, where the data has them. fit: how a square is made of an image that is none, `crop` or
    `pad`. survey: what reading the whole data set found beside the images. caption_kinds: what an image's first, second ... caption is,
    where the data set says so.
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
        """SHA-256 over names, captions, picture bytes and the fit, in order."""
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

    def set_aside(self, name: str, reason: str) -> None:
        self.ledger.append({"name": safe_name(name), "reason": safe_name(reason)})

    def subset(self, indices: list[int] | np.ndarray) -> "Pictures":
        return Pictures(
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
        """The caption of every image that judges text: of the image at place i number i modulo its count, so that any first
        K images of the embedded world are judged half by plain titles, half by enriched captions."""
        return [captions[place % len(captions)] for place, captions in enumerate(self.captions)]

    def split(self, held_out: bool) -> "Pictures":
        """The training or the held-out split, in `evaluation_order`: its first K images are a random sample.

        An image's split and place depend on its name alone. They do not move when the order of the files changes, and
        images that are added or removed do not change the order of the others.
        """
        rows = [i for i, name in enumerate(self.names) if is_held_out(name) == held_out]
        return self.subset(sorted(rows, key=lambda i: evaluation_order(self.names[i])))

    def pixels(self, size: int | tuple[int, int]) -> np.ndarray:
        """(N, size, size, 3) uint8 by `fit`; (N, height, width, 3) cropped for a pair. Call `screen` first for pictures of
        unknown origin."""
        height, width = (size, size) if isinstance(size, int) else size
        out = np.empty((len(self), height, width, 3), np.uint8)
        for i, data in enumerate(self.images):
            out[i] = decode(data, size, self.fit)
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


def screen(pictures: Pictures, *, max_set_aside: float, ledger: Path | None = None) -> Pictures:
    """Drop what does not decode, with the reason in the ledger; SK0401 when nothing is left, SK0402 past the share.

    ledger: the file that a refused data set's ledger is written to, by default one in the cache.
    """
    keep, rows, survey = [], list(pictures.ledger), replace(pictures.survey, sizes=[])
    for i, (name, data) in enumerate(zip(pictures.names, pictures.images, strict=True)):
        try:
            opened = open_image(data, SCREENED)
            if not any(caption.strip() for caption in pictures.captions[i]):
                raise ValueError("no caption")
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises anything on a damaged file, and the others are to be read
            rows.append({"name": name, "reason": reason_of(error)})
            continue
        keep.append(i)
        survey.sizes.append((opened.width, opened.height))
        for remark in opened.remarks:
            survey.changed.add(remark, name)
    if not keep or len(rows) > max_set_aside * (len(keep) + len(rows)):
        refuse(replace(pictures, ledger=rows), len(keep), max_set_aside, ledger)
    result = pictures.subset(keep)
    result.ledger, result.survey = rows, survey
    return result


def refuse(pictures: Pictures, kept: int, max_set_aside: float, ledger: Path | None) -> NoReturn:
    """SK0401 where no image is left, else SK0402; the ledger is written and named, and what was not read."""
    rows = pictures.ledger
    total = kept + len(rows)
    told = f"{pictures.source}: {total} files, none an image with a caption"
    if kept:
        told = f"{len(rows)} of {total} images set aside, at most {max_set_aside:.0%} expected"
    if rows:
        told += f"; first: {rows[0]['name']}: {rows[0]['reason']}"
    if pictures.survey.ignored:
        told += f"; not read: {pictures.survey.ignored.text()}"
    if rows:
        told += f"; all reasons: {write_ledger(rows, pictures.source, ledger)}"
    raise SanakitError("SK0402" if kept else "SK0401", told)


def read_parquet(path: Path, source: str, fit: str = "crop") -> Pictures:
    table = pd.read_parquet(path)
    return Pictures(
        source=source,
        names=table["name"].tolist(),
        captions=[list(c) for c in table["captions"]],
        images=table["image"].tolist(),
        fit=fit,
    )


def load_pictures(
    source: str,
    *,
    max_set_aside: float = 0.05,
    fit: str | None = None,
    captions: str = "lines",
    ledger: Path | None = None,
) -> Pictures:
    """A registered data set, a folder of images with .txt captions, a .csv/.jsonl manifest, WebDataset .tar shards, .parquet
    files, a folder of `datasets.save_to_disk`, or `hf:owner/name[:split]`; shards and Parquet by an address too.

    fit: `crop` or `pad`; None takes the data set's own, for files `crop`. captions: of caption files, `lines` (one a line)
    or `whole`. ledger: where a refused data set's ledger is written, by default in the cache. Raises SK0104 for an option
    that does not exist or has no effect, SK0401 and SK0402 for data that is refused.
    """
    for key, value, known in (("fit", fit or FITS[0], FITS), ("captions", captions, MODES)):
        if value not in known:
            raise SanakitError(
                "SK0104", f"data.{key} is {value!r}{did_you_mean(value, [*known])}; {' or '.join(known)}"
            )
    found = _read(source, captions)
    trusted = found is None and source in DATASETS.entries() and DATASETS.entries()[source].embedded
    found = DATASETS.get(source)() if found is None else found
    found = found if trusted else screen(found, max_set_aside=max_set_aside, ledger=ledger)
    return replace(found, fit=fit) if fit else found


def _read(source: str, captions: str) -> Pictures | None:
    from sanakit.data import files, shards, tables

    path = Path(source).expanduser()
    suffix, is_folder = path.suffix.lower(), path.is_dir() and not source.startswith("hf:")
    if captions != MODES[0] and suffix != ".tar" and not (is_folder and not tables.is_saved_dataset(path)):
        raise SanakitError("SK0104", f"data.captions {captions}: {source} has no caption files", fix="Leave it out.")
    if source.startswith("hf:"):
        return tables.read_hub_dataset(source.removeprefix("hf:"))
    if is_folder:
        return tables.read_saved_dataset(path) if tables.is_saved_dataset(path) else files.read_folder(path, captions)
    if suffix == ".parquet":
        return tables.read_parquet_files(source)
    if suffix == ".tar":
        return shards.read_shards(source, captions)
    if suffix in (".csv", ".jsonl"):
        return files.read_manifest(path)
    if path.is_file():
        raise SanakitError(
            "SK0401",
            f"{source} is a {suffix or 'file without a suffix'}; read are a folder, .csv, .jsonl, .tar, .parquet",
        )
    return None
