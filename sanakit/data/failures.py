"""Images that cannot be read or decoded while a run needs them, and what stands in for each.

The next image of the split that can be read stands in, in every epoch and for every rank: what a step sees stays a
function of (seed, step, slot). Splits lie in the order of a hash (data/names.py), so that the next image is a random
one.
"""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from sanakit.errors import SanakitError

MOST_IN_A_ROW = 64  # images that fail one after another: a disk or a server is gone
SLACK = 3.0  # standard errors above the tolerated share before a run ends


class Failures:
    """Of one data set. names: of its images. max_set_aside: share that may fail. Used by several threads."""

    def __init__(self, names: Sequence[str], max_set_aside: float = 0.05) -> None:
        self.names, self.max_set_aside = names, max_set_aside
        self.reasons: dict[int, str] = {}
        self.stand_ins: dict[int, int] = {}
        self.drawn = 0
        self._told: set[int] = set()
        self._lock = threading.Lock()

    def note(self, row: int, reason: str) -> None:
        with self._lock:
            self.reasons.setdefault(row, reason)

    def stand_in(self, row: int, replacement: int) -> None:
        with self._lock:
            self.stand_ins[row] = replacement

    def count_drawn(self, number: int) -> None:
        with self._lock:
            self.drawn += number

    def resolve(self, rows: Tensor) -> Tensor:
        """Rows with what stands in for those that failed."""
        if not self.stand_ins:
            return rows
        return torch.tensor([self.stand_ins.get(row, row) for row in rows.tolist()], dtype=torch.long)

    def take_new(self) -> list[dict[str, str]]:
        """Rows of the ledger that were not told yet."""
        with self._lock:
            new = [row for row in self.reasons if row not in self._told]
            self._told.update(new)
            return [{"name": self.names[row], "reason": self.reasons[row]} for row in new]

    @property
    def too_many(self) -> bool:
        """Whether more images have failed than `max_set_aside` of those drawn and chance explain."""
        expected = self.max_set_aside * self.drawn
        return len(self.reasons) > expected + SLACK * expected**0.5 + SLACK

    def refusal(self, outcome: str = "") -> SanakitError:
        """SK0402 with the numbers and the first reason. outcome: what became of the run."""
        told = f"{len(self.reasons)} images could not be read of {self.drawn:,} drawn, {self.max_set_aside:.0%} may"
        if self.reasons:
            row = min(self.reasons)
            told += f"; first: {self.names[row]}: {self.reasons[row]}"
        else:
            told += ", but on another rank"
        return SanakitError("SK0402", f"{told}; {outcome}" if outcome else told)


def no_failures() -> Failures:
    """Of data that is in memory."""
    return Failures(())
