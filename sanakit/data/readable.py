"""Pixels of a data set's images by row; the next image that can be read stands in for one that cannot."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sanakit.data.buckets import Size
from sanakit.data.failures import MOST_IN_A_ROW, Failures
from sanakit.data.survey import reason_of
from sanakit.data.table import ImageDataset

THREADS = 4  # Pillow decodes outside the interpreter's lock


class ReadableImages:
    """members: the rows of `failures` that the images are, where they are a bucket."""

    def __init__(
        self, images: ImageDataset, size: int | Size, failures: Failures, members: Sequence[int] | None = None
    ) -> None:
        self.images, self.size, self.failures, self.members = images, size, failures, members
        self.replaced: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, rows: Sequence[int]) -> np.ndarray:
        """(B, h, w, 3) uint8. Raises SK0402 where many images in a row cannot be read."""
        with ThreadPoolExecutor(THREADS) as pool:
            return np.stack(list(pool.map(self._pixels, rows)))

    def _pixels(self, row: int) -> np.ndarray:
        tried = self.replaced.get(row, row)
        for _ in range(MOST_IN_A_ROW):
            try:
                pixels = self.images.subset([tried]).pixels(self.size)[0]
            except MemoryError:
                raise
            except Exception as error:  # Pillow raises anything on a damaged file
                self.failures.note(self._name(tried), reason_of(error))
                tried = (tried + 1) % len(self.images)
                continue
            if tried != row and self.replaced.get(row) != tried:
                self.replaced[row] = tried
                self.failures.stand_in(self._name(row), self._name(tried))
            return pixels
        raise self.failures.refusal()

    def _name(self, row: int) -> int:
        return row if self.members is None else self.members[row]
