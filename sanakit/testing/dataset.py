"""The contract of a data set: images with captions under names that do not move."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sanakit.data.table import DATASETS, ImageDataset
from sanakit.swap.early import MIN_IMAGES
from sanakit.testing.contract import require, resolve

DECODED = 16  # images that are decoded, evenly spaced


def check_dataset(dataset: str | Callable[[], ImageDataset] | ImageDataset) -> None:
    """A registered name, its function or an ImageDataset keeps the contract of a data set. Raises SK0115."""
    item, name = resolve(dataset, DATASETS)
    images: Any = item if isinstance(item, ImageDataset) else item()
    found = f"a {type(images).__name__}, expected an ImageDataset"
    require(isinstance(images, ImageDataset), name, found, "Return ImageDataset(source=..., names=..., ...).")
    _check_rows(images, name)
    _check_pixels(images, name)
    _check_splits(images, name)
    if not isinstance(item, ImageDataset):
        fix = "Sort files by name, and draw nothing without a seed."
        require(item().fingerprint == images.fingerprint, name, "two calls give different data", fix)


def _check_rows(images: ImageDataset, name: str) -> None:
    counts = {"names": len(images.names), "captions": len(images.captions), "images": len(images.images)}
    if images.captions_base:
        counts["captions_base"] = len(images.captions_base)
    said = ", ".join(f"{count} {label}" for label, count in counts.items())
    require(
        len(set(counts.values())) == 1, name, f"{said}; expected equally many", "Give every image a name and captions."
    )
    fix = f"A swap needs {MIN_IMAGES} images, a useful one thousands."
    require(len(images) >= MIN_IMAGES, name, f"{len(images)} images, expected {MIN_IMAGES} or more", fix)
    twice = len(images.names) - len(set(images.names))
    fix = "Name every image by its place in the data set, for example a relative path."
    require(not twice, name, f"{twice} names are used twice; splits and caches go by them", fix)
    for label, captions in zip(images.names, images.captions, strict=True):
        right = (
            not isinstance(captions, str) and bool(captions) and all(isinstance(c, str) and c.strip() for c in captions)
        )
        found = f"the captions of {label} are {captions!r:.60}, expected a list of one or more texts"
        require(right, name, found, "Give every image a list of captions: ['a red circle'].")
    for label, captions, base in zip(
        images.names, images.captions, images.captions_base or images.captions, strict=True
    ):
        found = f"{label} has {len(captions)} captions and {len(base)} captions_base, expected equally many"
        require(len(captions) == len(base), name, found, "State what the base reads in the place of every caption.")


def _check_pixels(images: ImageDataset, name: str) -> None:
    rows = np.unique(np.linspace(0, len(images) - 1, DECODED).astype(int))
    pixels = images.subset(rows).pixels(32)
    found = f"{len(rows)} images decode to {pixels.shape} {pixels.dtype}"
    require(
        pixels.shape == (len(rows), 32, 32, 3) and pixels.dtype == np.uint8,
        name,
        f"{found}, expected ({len(rows)}, 32, 32, 3) uint8",
        "Hold encoded files (PNG, JPEG, WebP) as bytes.",
    )
    varied = bool(pixels.reshape(len(rows), -1).std(1).max() > 0) and len({p.tobytes() for p in pixels}) > 1
    require(varied, name, f"{len(rows)} images, evenly spaced, are all the same", "Check how files are read.")


def _check_splits(images: ImageDataset, name: str) -> None:
    training, held_out = images.split(False), images.split(True)
    found = f"{len(training)} images of the training split and {len(held_out)} held out, of {len(images)}"
    complete = len(training) + len(held_out) == len(images) and len(training) > 0 and len(held_out) > 0
    require(complete, name, f"{found}; expected both splits and every image once", "Leave `split` to the base class.")
