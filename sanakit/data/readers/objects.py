"""Images and captions that are in memory already: a Hugging Face data set, a torch data set, a table of pandas, any
sequence of rows.

A row is a dictionary with `image`, a caption column and perhaps `name`, `scores` and `captions_base`, as in tables, or
a pair (image, caption or captions). An image is a PIL image, encoded bytes, a file, uint8 values (H, W, 3) or (3, H,
W), or such floats from 0 to 1, as torchvision's ToTensor gives.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from sanakit.data.captions import as_captions, as_scores, base_captions, kind_of
from sanakit.data.images import as_shown
from sanakit.data.names import safe_name
from sanakit.data.part import image_problem, with_words
from sanakit.data.readers.tables import CAPTIONS
from sanakit.data.survey import reason_of
from sanakit.data.table import ImageDataset
from sanakit.errors import SanakitError


def read_objects(source: Any) -> ImageDataset:
    """Every row of a data set that has a length. Rows that cannot be read are set aside with the reason. A row without
    a name is called by its number: keep the order, as the split depends on names. Raises SK0401 for what has no rows.
    """
    label = type(source).__name__
    if isinstance(source, str | bytes | Mapping) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise SanakitError(
            "SK0401",
            f"a {label} is no data set of images: expected a name, a path, or a sequence of rows with a length",
            fix="Of a DatasetDict take one split; of a stream take rows: list(itertools.islice(stream, 10_000)).",
        )
    rows, source = InMemory(), _by_number(source)
    for number in range(len(source)):
        name = f"{label}/{number}"
        try:
            row = source[number]
            if isinstance(row, Mapping) and isinstance(row.get("name"), str | int) and row["name"] != "":
                name = str(row["name"])
            image, captions, scores = _parts(row)
            base = base_captions(row) if isinstance(row, Mapping) else None
            rows.add(name, as_captions(captions), encoded(image), as_scores(scores), base)
        except MemoryError:
            raise
        except Exception as error:  # a data set of somebody else's raises anything, and the others are to be read
            rows.set_aside(name, reason_of(error))
    return ImageDataset(
        source=f"{label} of {len(source)} rows",
        names=rows.names,
        captions=rows.captions,
        images=rows.images,
        ledger=rows.ledger,
        scores=rows.scores,
        captions_base=rows.captions_base,
    )


@dataclass
class InMemory:
    """Rows as they are gathered; the fields are those of an ImageDataset."""

    names: list[str] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    ledger: list[dict[str, str]] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    captions_base: list[list[str]] = field(default_factory=list)
    known: set[str] = field(default_factory=set)

    def add(
        self,
        name: str,
        captions: list[str],
        image: bytes,
        scores: list[float] | None = None,
        base: list[str] | None = None,
    ) -> None:
        """One image more; captions without words go, with their scores and the base's. What does not fit is set
        aside, and so is an image without any."""
        others: dict[str, list[Any]] = {"name": self.names, "scores": self.scores, "captions_base": self.captions_base}
        problem = image_problem(others, captions, base, scores)
        if safe_name(name) in self.known:
            problem = "a second row of this name"
        if problem:
            self.set_aside(name, problem)
            return
        self.known.add(safe_name(name))
        kept = with_words(captions, base)
        self.names.append(safe_name(name))
        self.captions.append([captions[number].strip() for number in kept])
        self.images.append(image)
        if scores:
            self.scores.append([float(scores[number]) for number in kept])
        if base:
            self.captions_base.append([base[number].strip() for number in kept])

    def set_aside(self, name: str, reason: str) -> None:
        self.ledger.append({"name": safe_name(name), "reason": safe_name(reason)})


def _by_number(source: Any) -> Any:
    """What gives row i at [i]: a Hugging Face data set without decoding its images first, a table of pandas by rows."""
    if hasattr(source, "iloc"):
        return source.to_dict("records")
    if hasattr(source, "cast_column") and "image" in getattr(source, "features", ()):
        import datasets

        as_it_is = (getattr(source, "format", None) or {}).get("type") is None  # else a transform wants decoded images
        if as_it_is and isinstance(source.features["image"], datasets.Image):
            source = source.cast_column("image", datasets.Image(decode=False))
    return source


def _parts(row: Any) -> tuple[Any, Any, Any]:
    """Image, caption or captions, and scores of a row. Raises ValueError."""
    if isinstance(row, Mapping):
        column = next((name for name in CAPTIONS if name in row), None)
        if "image" not in row or column is None:
            raise ValueError(f"has {', '.join(map(str, row))}; expected image and one of {', '.join(CAPTIONS)}")
        return row["image"], row[column], row.get("scores")
    if isinstance(row, tuple | list) and len(row) == 2:
        image, captions = row
        return image, list(captions) if isinstance(captions, tuple) else captions, None
    raise ValueError(f"is a {type(row).__name__}, expected a dictionary or a pair of image and caption")


def encoded(image: Any) -> bytes:
    """The bytes of an encoded image; pixels become a PNG, without loss. Raises ValueError."""
    if isinstance(image, Mapping):  # a Hugging Face image that is not decoded
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(_as_bytes(image))
    if not isinstance(image, Image.Image):
        raise ValueError(f"no image: the row holds {kind_of(image)}")
    out = io.BytesIO()
    as_shown(image).save(out, "PNG")
    return out.getvalue()


def _as_bytes(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8. Raises ValueError for another shape, or for values on another scale."""
    if pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[2] != 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"an image is {pixels.shape}, expected (3, H, W) or (H, W, 3)")
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    low, high = float(pixels.min()), float(pixels.max())
    if not np.issubdtype(pixels.dtype, np.floating) or not (low >= 0 and high <= 1):
        raise ValueError(
            f"{pixels.dtype} values from {low:.4g} to {high:.4g}, expected uint8, or floats from 0 to 1 as "
            "torchvision's ToTensor gives"
        )
    return (pixels * 255).round().astype(np.uint8)
