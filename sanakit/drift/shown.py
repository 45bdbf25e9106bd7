"""What a side carries beside its numbers, so that a page can show its rows: small images and labels.

Tensors of a file: `images` (N, H, W, 3) uint8, and `labels` (N, bytes) uint8, UTF-8 padded with zeros: names of
images, captions of prompts. A snapshot keeps them of some rows, whose numbers lie in `KIND.images.rows`.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sanakit.data.images import SIDE
from sanakit.errors import SanakitError

LABEL_BYTES = 80
KIND_TENSORS = {"latents": ("latents", "raw_latents"), "embeddings": ("embeddings", "embeds", "mask")}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One row as a page shows it. image: (h, w, 3) uint8."""

    label: str = ""
    image: np.ndarray | None = None

    @property
    def uri(self) -> str:
        """The image as a PNG; empty without one."""
        from PIL import Image

        if self.image is None:
            return ""
        buffer = io.BytesIO()
        Image.fromarray(self.image).save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def as_labels(texts: Sequence[str]) -> Tensor:
    """(N, LABEL_BYTES) uint8; longer texts are cut."""
    raw = b"".join(text.encode()[:LABEL_BYTES].ljust(LABEL_BYTES, b"\0") for text in texts)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(len(texts), LABEL_BYTES)


def shown_rows(source: Path, kind: str, rows: Sequence[int]) -> dict[int, Shown]:
    """What `source` carries of these rows of a kind, counted over the shards of a folder; rows without are left out.

    An entry of the cache carries nothing itself: the file for drift that `encode` wrote beside it does.
    """
    beside = source.with_name(source.name + ".safetensors")
    if source.is_dir() and (source / "manifest.json").is_file() and beside.is_file():
        return shown_rows(beside, kind, rows) if _count(source, kind) == _count(beside, kind) else {}
    shown_by_row: dict[int, Shown] = {}
    for handle, path, start, count in _files(source, kind):
        for name, number, place in _places(handle, kind, rows, start, count):
            stored = handle.get_slice(name)
            shape, wanted = stored.get_shape(), "(N, H, W, 3)" if name.endswith("images") else "(N, bytes)"
            right = len(shape) == 4 and shape[-1] == 3 if name.endswith("images") else len(shape) == 2
            if stored.get_dtype() != "U8" or not right or place >= shape[0]:
                raise SanakitError(
                    "SK0701",
                    f"{path}: `{name}` is {stored.get_dtype()} {tuple(shape)}, expected uint8 {wanted} of {count} rows",
                )
            shown_by_row[number] = _with(shown_by_row.get(number, Shown()), name, stored[place : place + 1][0])
    return shown_by_row


def pack(shown: dict[int, Shown], kind: str) -> dict[str, Tensor]:
    """The tensors of a snapshot that hold these rows; images shrunk to SIDE."""
    images_by_row = {row: torch.from_numpy(_small(s.image)) for row, s in shown.items() if s.image is not None}
    labelled = {row: s.label for row, s in shown.items() if s.label}
    tensors = {}
    if images_by_row and len({p.shape for p in images_by_row.values()}) == 1:
        tensors[f"{kind}.images"] = torch.stack(list(images_by_row.values()))
        tensors[f"{kind}.images.rows"] = torch.tensor(list(images_by_row))
    if labelled:
        tensors[f"{kind}.labels"] = as_labels(list(labelled.values()))
        tensors[f"{kind}.labels.rows"] = torch.tensor(list(labelled))
    return tensors


def _files(source: Path, kind: str) -> Iterator[tuple[Any, Path, int, int]]:
    """Open files that hold the kind (or a snapshot), the number of their first row, and how many there are."""
    start = 0
    for path in sorted(source.glob("*.safetensors")) if source.is_dir() else [source]:
        try:
            with safe_open(path, "pt") as handle:
                names = set(handle.keys())
                holds = next((name for name in KIND_TENSORS[kind] if name in names), None)
                count = handle.get_slice(holds).get_shape()[0] if holds else 0
                if holds or f"{kind}.rows" in names:
                    yield handle, path, start, count
                start += count
        except (SafetensorError, OSError) as error:
            raise SanakitError("SK0701", f"{path} is no readable safetensors file: {error}") from error


def _count(source: Path, kind: str) -> int:
    return sum(count for *_, count in _files(source, kind))


def _places(handle: Any, kind: str, rows: Sequence[int], start: int, count: int) -> Iterator[tuple[str, int, int]]:
    """Tensor, row, and the place in the tensor where it lies."""
    names = set(handle.keys())
    for name in ("images", "labels"):
        if f"{kind}.{name}.rows" in names:
            where = {int(row): place for place, row in enumerate(handle.get_tensor(f"{kind}.{name}.rows"))}
            yield from ((f"{kind}.{name}", row, where[row]) for row in rows if row in where)
        elif name in names:
            yield from ((name, row, row - start) for row in rows if start <= row < start + count)


def _with(row: Shown, name: str, value: Tensor) -> Shown:
    if name.endswith("images"):
        return replace(row, image=value.numpy())
    return replace(row, label=bytes(value.tolist()).rstrip(b"\0").decode(errors="ignore"))


def _small(pixels: np.ndarray) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    return np.array(image)
