"""How many images or prompts an encoder takes at once: what the free memory holds, halved where it was too much."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sanakit.errors import SanakitError
from sanakit.placement import Placement

SHARE = 0.8  # of the free memory that a batch may take


def batch_size(placement: Placement, most: int, probe: Callable[[], object]) -> int:
    """Rows of an encoding batch: `most` on the CPU, else as many as SHARE of the free memory holds. probe: encodes one
    row."""
    if not placement.accelerated or most == 1:
        return most
    each, memory = placement.peak_of(probe), placement.memory()
    if not each or memory is None:
        return most
    return max(1, min(most, int(SHARE * memory[0]) // each))


def in_batches(
    rows: Sequence[Any],
    size: int,
    work: Callable[[Any], Any],
    *,
    what: str,
    said: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    smaller: Callable[[], bool] = lambda: False,
) -> tuple[list[Any], int]:
    """`work` on slices of `rows` of at most `size`, halved wherever the device runs out of memory, and said; the
    results and the size that was left. smaller: makes one row need less, and says whether it could. One row that does
    not fit raises SK0906."""
    results, start = [], 0
    while start < len(rows):
        try:
            results.append(work(rows[start : start + size]))
        except torch.OutOfMemoryError as error:
            if size == 1 and smaller():
                said(f"{what}: out of memory with one, on in tiles")
                continue
            if size == 1:
                raise SanakitError("SK0906", f"{what}: one of them does not fit: {error}") from error
            size = max(1, min(size, len(rows) - start) // 2)
            said(f"{what}: out of memory, on with {size} at a time")
            continue
        start += size
    return results, size
