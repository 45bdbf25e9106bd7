"""Which images decode: all of them in a small data set, of a large one a sample that says how many to expect.

Shown and refused before the first step. What fails later is replaced while it is drawn (data/failures.py).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sanakit.data.images import open_image
from sanakit.data.survey import Survey, Tally, reason_of, write_ledger
from sanakit.data.table import ImageDataset
from sanakit.errors import SanakitError
from sanakit.ranks.sharing import shared

SCREENED = 8  # pixels of a side: a JPEG is screened at its smallest scale, all of its bytes read
SAMPLE = (
    2_000  # images that are decoded, of each split the first in evaluation order: whatever is evaluated is among them
)
THREADS = 4  # Pillow decodes outside the interpreter's lock


def screen(dataset: ImageDataset, *, max_set_aside: float, ledger: Path | None = None) -> ImageDataset:
    """Drop what does not decode, with the reason in the ledger; SK0401 when nothing is left, SK0402 past the share.

    ledger: the file that a refused data set's ledger is written to, by default one in the cache.
    """
    indexed = dataset.indexed
    if indexed is None:
        return _screen_in_memory(dataset, max_set_aside, ledger)
    chosen = _sample(dataset)
    told = indexed.recall(f"screened {SAMPLE}", lambda: _decode_sample(dataset, chosen))
    rows = [*dataset.ledger, *({"name": name, "reason": reason} for _, name, reason in told["failed"])]
    survey = Survey(ignored=dataset.survey.ignored, changed=Tally.of(told["changed"]))
    survey.decoded = len(chosen) if len(chosen) < len(dataset) else 0
    kept = np.delete(np.arange(len(dataset)), np.array([index for index, _, _ in told["failed"]], dtype=np.int64))
    share = len(told["failed"]) / max(1, len(chosen))
    expected = len(dataset.ledger) + share * len(dataset)
    result = replace(dataset.subset(kept), ledger=rows, survey=survey)
    if not len(kept) or expected > max_set_aside * (len(dataset.ledger) + len(dataset)):
        refuse(result, len(kept), max_set_aside, ledger)
    return result


def _sample(dataset: ImageDataset) -> np.ndarray:
    """SAMPLE images of the training split and as many held-out ones, by the hash that orders evaluation images."""
    assert dataset.indexed is not None
    order, held = dataset.indexed.numbers("order"), dataset.indexed.numbers("held_out")
    parts = []
    for split in (False, True):
        rows = np.flatnonzero(held == split)
        count = min(SAMPLE, len(rows))
        parts.append(rows[np.argpartition(order[rows], count - 1)[:count]] if count else rows)
    return np.sort(np.concatenate(parts))


def _decode_sample(dataset: ImageDataset, chosen: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """{failed: [index, name, reason], changed: a tally}, in the order of the data set; the ranks of a run share the
    images."""

    def decode(index: int) -> tuple[int, str, tuple[str, ...]]:
        try:
            return index, "", open_image(dataset.images[index], SCREENED).remarks
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises anything on a damaged file, and the others are to be read
            return index, reason_of(error), ()

    def decode_run(indices: Sequence[int]) -> list[tuple[int, str, tuple[str, ...]]]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(decode, indices))

    failed, changed = [], Tally()
    for index, reason, remarks in shared([int(index) for index in chosen], decode_run):
        if reason:
            failed.append([index, dataset.names[index], reason])
        for remark in remarks:
            changed.add(remark, dataset.names[index])
    return {"failed": failed, "changed": changed.kinds}


def _screen_in_memory(dataset: ImageDataset, max_set_aside: float, ledger: Path | None) -> ImageDataset:
    keep, rows, survey = [], list(dataset.ledger), replace(dataset.survey, sizes=[])
    for i, (name, data) in enumerate(zip(dataset.names, dataset.images, strict=True)):
        try:
            opened = open_image(data, SCREENED)
            if not any(caption.strip() for caption in dataset.captions[i]):
                raise ValueError("no caption")
        except MemoryError:
            raise
        except Exception as error:  # as above
            rows.append({"name": name, "reason": reason_of(error)})
            continue
        keep.append(i)
        survey.sizes.append((opened.width, opened.height))
        for remark in opened.remarks:
            survey.changed.add(remark, name)
    if not keep or len(rows) > max_set_aside * (len(keep) + len(rows)):
        refuse(replace(dataset, ledger=rows), len(keep), max_set_aside, ledger)
    result = dataset.subset(keep)
    result.ledger, result.survey = rows, survey
    return result


def refuse(dataset: ImageDataset, kept: int, max_set_aside: float, ledger: Path | None) -> NoReturn:
    """SK0401 where no image is left, else SK0402; the ledger is written and named, and what was not read."""
    rows = dataset.ledger
    total = kept + len(rows)
    told = f"{dataset.source}: {total} files, none an image with a caption"
    if kept:
        told = f"{len(rows)} of {total} images set aside, at most {max_set_aside:.0%} expected"
        if dataset.survey.decoded:
            told += f" ({dataset.survey.decoded:,} of them decoded, the others' share is taken to be the same)"
    if rows:
        told += f"; first: {rows[0]['name']}: {rows[0]['reason']}"
    if dataset.survey.ignored:
        told += f"; not read: {dataset.survey.ignored.text()}"
    if rows:
        told += f"; all reasons: {write_ledger(rows, dataset.source, ledger)}"
    raise SanakitError("SK0402" if kept else "SK0401", told)
