"""Where an encoded image lies: in a file, in a shard at an offset, in a row of a table; read by any number of
threads."""

import bisect
import functools
import hashlib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sanakit.data.nearby import read_nearby, read_nearby_group
from sanakit.files import without_secrets

SECRETS: dict[str, str] = {}  # addresses without credentials and query to whole ones; never written anywhere
OPEN_TABLES = 32  # memory-mapped Arrow files that stay open
OPEN_GROUPS = 4  # row groups of Parquet files that stay decoded


class Kind(IntEnum):
    BYTES = 0  # offset: bytes from the start of the file
    ARROW = 1  # offset: the row of an Arrow stream file
    PARQUET = 2  # offset: the row of a Parquet file


@dataclass(frozen=True, slots=True)
class Place:
    path: str
    kind: int
    offset: int
    nbytes: int
    sha256: bytes = b""


def whole_file(path: Path, nbytes: int) -> Place:
    return Place(str(path), Kind.BYTES, 0, nbytes)


def is_address(path: str) -> bool:
    return "://" in path


def remember_address(address: str) -> str:
    """The address without credentials and query, by which an index knows it; this process opens it with them."""
    public = without_secrets(address)
    if public != address:
        SECRETS[public] = address
    return public


def whole_address(public: str) -> str:
    return SECRETS.get(public, public)


def read_checked(place: Place) -> bytes:
    """The bytes. Raises ValueError where they are not those of the index, OSError where they cannot be read."""
    data = read_place(place)
    if hashlib.sha256(data).digest() != place.sha256:
        raise ValueError(f"changed since it was indexed: {len(data)} bytes, {place.nbytes} expected")
    return data


def read_place(place: Place) -> bytes:
    if place.kind == Kind.ARROW:
        return image_bytes(open_arrow(place.path)["image"][place.offset].as_py())
    if place.kind == Kind.PARQUET:
        return _read_row(place)
    if is_address(place.path):
        import fsspec

        system, path = fsspec.core.url_to_fs(whole_address(place.path))
        end = place.offset + place.nbytes
        return read_nearby(place.sha256, lambda: bytes(system.cat_file(path, start=place.offset, end=end)))
    with Path(place.path).open("rb") as file:
        file.seek(place.offset)
        return file.read(place.nbytes)


def _read_row(place: Place) -> bytes:
    """The image of a row of a Parquet file. Of one behind an address every image of the row group that was fetched is
    kept on the local disk (data/nearby.py): a random image of it costs no second way to the address."""
    group, row = _group_of(place.path, place.offset)
    if not is_address(place.path):
        return image_bytes(_read_group(place.path, group, _written(place.path))[row].as_py())

    def fetch() -> list[bytes | None]:
        cells = _read_group(place.path, group, _written(place.path))
        return [data if isinstance(data := _cell_bytes(cell.as_py()), bytes) else None for cell in cells]

    return image_bytes(read_nearby_group(place.sha256, (place.path, group), row, fetch))


def image_bytes(value: Any) -> bytes:
    """The bytes of a cell of column `image`: bytes, or a struct of bytes and path."""
    data = _cell_bytes(value)
    if not isinstance(data, bytes):
        raise ValueError("the row holds no image any more")
    return data


def _cell_bytes(value: Any) -> Any:
    return value["bytes"] if isinstance(value, dict) else value


def open_arrow(path: str) -> pa.Table:
    """A memory-mapped Arrow stream file."""
    return _open_arrow(path, _written(path))


@functools.lru_cache(maxsize=OPEN_TABLES)
def _open_arrow(path: str, written: object) -> pa.Table:
    with pa.memory_map(path) as source, pa.ipc.open_stream(source) as stream:
        return stream.read_all()


def open_parquet(path: str) -> pq.ParquetFile:
    if not is_address(path):
        return pq.ParquetFile(path)
    import fsspec

    return pq.ParquetFile(fsspec.open(whole_address(path), "rb").open())


def _written(path: str) -> tuple[int, int]:
    """What tells a file from the one that was there before; of an address nothing."""
    if is_address(path):
        return 0, 0
    facts = Path(path).stat()
    return facts.st_size, facts.st_mtime_ns


@functools.lru_cache(maxsize=256)
def _group_ends(path: str, written: object) -> tuple[int, ...]:
    with open_parquet(path) as file:
        ends, total = [], 0
        for number in range(file.num_row_groups):
            total += file.metadata.row_group(number).num_rows
            ends.append(total)
        return tuple(ends)


def _group_of(path: str, row: int) -> tuple[int, int]:
    ends = _group_ends(path, _written(path))
    group = bisect.bisect_right(ends, row)
    return group, row - (ends[group - 1] if group else 0)


@functools.lru_cache(maxsize=OPEN_GROUPS)
def _read_group(path: str, group: int, written: object) -> pa.ChunkedArray:
    with open_parquet(path) as file:
        return file.read_row_group(group, columns=["image"])["image"]
