"""Rows of an index: an Arrow table, memory-mapped, and which of its rows a data set has, in which order.

A data set of ten million images costs a rank 8 bytes an image here; names, captions and places stay on disk until they
are asked for, and an image's bytes are read from its file or shard each time.
"""

import bisect
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from sanakit.data.places import Place, read_checked
from sanakit.files import write_aside
from sanakit.hashing import hash_record
from sanakit.ranks.sharing import all_ranks

SCHEMA = pa.schema(
    [
        ("name", pa.large_string()),
        ("captions", pa.large_list(pa.large_string())),
        ("captions_base", pa.large_list(pa.large_string())),  # null where both sides read `captions`
        ("scores", pa.large_list(pa.float64())),
        ("path", pa.large_binary()),  # of the file or shard as the system spells it, or its address
        ("kind", pa.int8()),  # a number of places.Kind
        ("offset", pa.int64()),  # bytes from the start, or the row of a table
        ("nbytes", pa.int64()),
        ("sha256", pa.binary(32)),
        ("key", pa.int64()),  # of the row in the cache of latents
        ("width", pa.int32()),  # as the image is shown
        ("height", pa.int32()),
        ("lines", pa.int32()),  # captions that are lines of a caption file with several
        ("order", pa.uint64()),  # the first 8 bytes of `evaluation_order`
        ("held_out", pa.bool_()),
    ]
)
BATCH = 4096


@dataclass(frozen=True)
class Indexed:
    """table: every row of the index. rows: (n,) int64, those of the data set. folder: where facts are remembered; key:
    of what the table was read from."""

    table: pa.Table
    rows: np.ndarray
    folder: Path
    key: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Indexed":
        return Indexed(self.table, self.rows[np.asarray(indices, dtype=np.int64)], self.folder, self.key)

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers for the rows of the data set. (n,)"""
        return self.table[name].to_numpy()[self.rows]  # type: ignore[no-any-return]

    def caption_counts(self) -> np.ndarray:
        """Captions of every image. (n,)"""
        lists = self.table["captions"].chunks
        counts = [np.diff(chunk.offsets.to_numpy()) for chunk in lists]
        return np.concatenate(counts)[self.rows] if counts else np.zeros(0, np.int64)

    def values(self, name: str, indices: Sequence[int] | np.ndarray) -> list[Any]:
        """Values of a column for some rows of the data set; each chunk is read by itself, as Arrow would join them
        all."""
        column, starts = self.table[name], self._starts
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        chunk = np.searchsorted(starts, rows, side="right") - 1
        out: list[Any] = [None] * len(rows)
        for number in np.unique(chunk).tolist():
            mine = np.flatnonzero(chunk == number)
            taken = column.chunk(number).take(pa.array(rows[mine] - starts[number])).to_pylist()
            for place, value in zip(mine.tolist(), taken, strict=True):
                out[place] = value
        return out

    def value(self, name: str, index: int) -> Any:
        row = int(self.rows[index])
        number = bisect.bisect_right(self._starts_list, row) - 1
        return self.table[name].chunk(number)[row - self._starts_list[number]].as_py()

    @cached_property
    def _starts(self) -> np.ndarray:
        lengths = [len(chunk) for chunk in self.table["name"].chunks]
        return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64) if lengths else np.zeros(1, np.int64)

    @cached_property
    def _starts_list(self) -> list[int]:
        starts: list[int] = self._starts.tolist()
        return starts

    def place(self, index: int) -> Place:
        path, *rest = (self.value(field, index) for field in ("path", "kind", "offset", "nbytes", "sha256"))
        return Place(os.fsdecode(path), *rest)

    def recall(self, name: str, compute: Callable[[], Any]) -> Any:
        """A JSON-able fact of exactly these rows, computed once and remembered beside the index. Ranks that share their
        work compute it together where one of them does not know it."""
        rows = hashlib.sha256(self.rows.tobytes()).hexdigest()
        path = self.folder / f"fact-{hash_record([name, self.key, rows])[:20]}.json"
        known, value = False, None
        with suppress(OSError, ValueError):
            value, known = json.loads(path.read_text(encoding="utf-8")), True
        if not all_ranks(known):
            value = compute()
            write_aside(path, json.dumps(value))
        return value


class Column(Sequence[Any]):
    """A column of text or lists as a sequence that is read when it is asked for."""

    def __init__(self, indexed: Indexed, name: str) -> None:
        self.indexed, self.name = indexed, name

    def __len__(self) -> int:
        return len(self.indexed)

    @overload
    def __getitem__(self, key: int) -> Any: ...
    @overload
    def __getitem__(self, key: slice) -> list[Any]: ...
    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            return self.indexed.values(self.name, range(*key.indices(len(self))))
        return self.indexed.value(self.name, range(len(self))[key])

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), BATCH):
            yield from self[start : start + BATCH]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} {self.name}>"


class Images(Column):
    """The encoded images of an index, each read from its place and compared with its hash. Raises ValueError for one
    that is not what it was when the index was made."""

    def __init__(self, indexed: Indexed) -> None:
        super().__init__(indexed, "images")

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return [self[index] for index in range(*key.indices(len(self)))]
        return read_checked(self.indexed.place(range(len(self))[key]))


class Texts(Sequence[str]):
    """Every caption of an index, one after the other. column: `captions`, or `captions_base`, which has as many."""

    def __init__(self, indexed: Indexed, column: str = "captions") -> None:
        self.indexed, self.column = indexed, column
        self.ends = indexed.caption_counts().cumsum()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: int | slice) -> str | list[str]:
        if isinstance(key, int):
            row = range(len(self))[key]
            owner = int(np.searchsorted(self.ends, row, side="right"))
            captions = self.indexed.value(self.column, owner)
            return str(captions[row - int(self.ends[owner]) + len(captions)])
        rows = np.arange(*key.indices(len(self)))
        owners = np.searchsorted(self.ends, rows, side="right")
        unique, place = np.unique(owners, return_inverse=True)
        captions = self.indexed.values(self.column, unique)
        return [
            captions[p][row - int(self.ends[owner]) + len(captions[p])]
            for p, row, owner in zip(place.tolist(), rows.tolist(), owners.tolist(), strict=True)
        ]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BATCH):
            yield from self[start : start + BATCH]
