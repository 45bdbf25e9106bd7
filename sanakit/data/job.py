"""What fills an entry of the store, and what is found instead: rows that are there are read, the others computed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanakit.data import store
from sanakit.data.packed import PackedRows
from sanakit.data.rows import Rows
from sanakit.data.spot import SPOT_TOLERANCE, spot_check
from sanakit.files import cache_dir

HALF_TOLERANCE = 0.05  # relative L2 of a spot check where the encoder computes in half precision


@dataclass(frozen=True, kw_only=True)
class Job:
    """What fills an entry: its facts, content hashes of the rows, how to compute any of them, and bytes of one. open:
    an entry's shards and the rows wanted of it to tensors that are read by row. hold: takes the encoder to its
    device."""

    facts: dict[str, Any]
    rows: Tensor
    compute: Callable[[Sequence[int]], dict[str, Tensor]]  # of these rows
    checked: str  # the tensor whose spot check tells
    again: Callable[[list[int]], Tensor]
    row_bytes: int
    open: Callable[[dict[str, list[Tensor]], Tensor], dict[str, Any]] = field(default=lambda s, w: open_rows(s, w))
    hold: Callable[[], AbstractContextManager[None]] = nullcontext

    def run_share(self, cache: Path, share: tuple[int, int]) -> int:
        """Encode this job's share (i, n) of what no entry holds yet; how many shards other jobs still have to write.
        The last one leaves a whole entry, which `run` then finds."""
        if self._find(cache) is not None:
            return 0
        union = store.find_some(cache, self.facts, self.rows)
        missing = torch.arange(len(self.rows)) if union is None else (union.where < 0).nonzero()[:, 0]
        if not len(missing):
            return 0
        chosen = missing.tolist()

        def compute(part: range) -> dict[str, Tensor]:
            return self.compute(chosen[part.start : part.stop])

        rows = self.rows[missing]
        with self.hold():
            return store.write_share(cache, self.facts, rows, compute, row_bytes=self.row_bytes, share=share)[1]

    def _find(self, root: Path) -> Any:
        """An entry of all rows; one in fp32 serves half precision too."""
        single = {key: value for key, value in self.facts.items() if key != "compute"}
        return store.find(root, self.facts, self.rows) or store.find(root, single, self.rows)

    def run(self, cache: Path | None = None, *, must_exist: bool = False) -> tuple[store.Entry, dict[str, Rows], bool]:
        """The entry, the tensors of all rows, and whether everything was found. What was found is spot-checked; rows
        that no entry holds are encoded into one of their own, which is the one returned. SK0404 where all must exist
        but do not, with the fields that differ."""
        root = cache or cache_dir()
        cached = self._find(root)
        if cached is not None:
            entry, shards, where = cached
            self._check(entry, shards, where, range(len(where)))
            return entry, self.open(shards, where), True
        union = store.find_some(root, self.facts, self.rows)
        missing = torch.arange(len(self.rows)) if union is None else (union.where < 0).nonzero()[:, 0]
        if must_exist and len(missing):
            store.refuse_other(root, self.facts)
        if union is None:
            with self.hold():
                entry = store.write(root, self.facts, self.rows, self.compute, row_bytes=self.row_bytes)
            return entry, self.open(entry.read(), torch.arange(len(self.rows))), False
        present = (union.where >= 0).nonzero()[:, 0]
        self._check(union.entries[0], union.shards, union.where[present], present.tolist())
        if not len(missing):
            return union.entries[0], self.open(union.shards, union.where), True
        with self.hold():
            entry = self._add(root, union, missing)
        return entry, self.open(union.shards, union.where), False

    def _add(self, root: Path, union: store.Union, missing: Tensor) -> store.Entry:
        """Encode the rows that no entry has into one of their own, and put them into the union."""
        chosen, start = missing.tolist(), sum(len(shard) for shard in union.shards["rows"])

        def compute(part: range) -> dict[str, Tensor]:
            return self.compute(chosen[part.start : part.stop])

        entry = store.write(root, self.facts, self.rows[missing], compute, row_bytes=self.row_bytes)
        added = entry.read()
        if added.keys() != union.shards.keys():  # embeddings that an earlier version kept with their padding
            entry = store.write(root, self.facts, self.rows, self.compute, row_bytes=self.row_bytes)
            union.shards.update(entry.read())
            union.where.copy_(torch.arange(len(self.rows)))
            return entry
        for name, parts in added.items():
            union.shards[name] += parts
        union.where[missing] = start + torch.arange(len(missing))
        return entry

    def _check(self, entry: store.Entry, shards: dict[str, Any], where: Tensor, rows: Sequence[int]) -> None:
        """Compute some of the stored rows again. rows: their numbers in this job."""
        total = sum(len(shard) for shard in shards["rows"])
        every = self.open(shards, torch.arange(total))[self.checked]
        tolerance = HALF_TOLERANCE if "compute" in self.facts else SPOT_TOLERANCE
        with self.hold():
            spot_check(entry, where, every.__getitem__, lambda chosen: self.again([rows[i] for i in chosen]), tolerance)


def open_rows(shards: dict[str, list[Tensor]], where: Tensor) -> dict[str, Any]:
    return {name: Rows(parts, where) for name, parts in shards.items() if name != "rows"}


def open_packed(shards: dict[str, list[Tensor]], where: Tensor) -> dict[str, Any]:
    """Embeddings; those of entries that earlier versions wrote lie with their padding."""
    if "tokens" not in shards:
        return open_rows(shards, where)
    plain = {name: parts for name, parts in shards.items() if name not in ("tokens", "starts")}
    return open_rows(plain, where) | {"embeds": PackedRows(shards, where)}


def first_of_each(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The first row of every distinct prompt, in order, and (N,) which of those each prompt is."""
    distinct, which = store.row_hashes(p.encode() for p in prompts).unique(return_inverse=True)
    first = torch.full((len(distinct),), len(which)).scatter_reduce(0, which, torch.arange(len(which)), "amin")
    ordered, order = first.sort()
    return ordered, order.argsort()[which]
