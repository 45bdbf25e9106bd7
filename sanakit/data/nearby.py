"""Images behind an address, kept on the local disk up to a bound.

An epoch asks for every image once and in a random order, so that no image is worth more than another: what is kept
stays, and nothing is added when the bound is reached. Any number of threads and processes share the file.
"""

import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sanakit.errors import SanakitError
from sanakit.files import cache_dir

SETTING = "SANAKIT_REMOTE_CACHE_GB"
DEFAULT_GB = 10.0
PAGE = 16_384  # bytes
WAIT = 5.0  # seconds for another process that writes
GROUPS = [threading.Lock() for _ in range(64)]  # of row groups that are being fetched
_local = threading.local()


def read_nearby(sha256: bytes, fetch: Callable[[], bytes]) -> bytes:
    """The bytes of this hash from the local disk, or what `fetch` gives, kept where there is room. Raises SK0104 for a
    bound that is no number, and what `fetch` raises."""
    bound = bound_bytes()
    if not bound or not sha256:
        return fetch()
    kept = _kept(sha256, bound)
    if kept is not None:
        return kept
    data = fetch()
    if hashlib.sha256(data).digest() == sha256:
        _keep(sha256, data, bound)
    return data


def read_nearby_group(sha256: bytes, name: object, row: int, fetch: Callable[[], list[bytes | None]]) -> bytes | None:
    """As `read_nearby`, where one request brings many images: `fetch` gives those of the group `name`, this one at
    `row`, and all are kept. Threads that want images of one group wait for the one that fetches it. None for a row that
    holds no image."""
    bound = bound_bytes()
    kept = _kept(sha256, bound) if bound else None
    if kept is not None:
        return kept
    with GROUPS[hash(name) % len(GROUPS)]:
        if bound and (kept := _kept(sha256, bound)) is not None:
            return kept
        group = fetch()
        for data in group if bound else []:
            if data is not None:
                _keep(hashlib.sha256(data).digest(), data, bound)
    return group[row]


def _kept(sha256: bytes, bound: int) -> bytes | None:
    """The copy on the local disk, where there is a sound one."""
    with suppress(sqlite3.Error, OSError):  # a disk that cannot be read or written costs the way to the address only
        row = _opened(bound).execute("SELECT data FROM images WHERE sha256 = ?", (sha256,)).fetchone()
        data = bytes(row[0]) if row else None
        if data is not None and hashlib.sha256(data).digest() == sha256:
            return data
    return None


def _keep(sha256: bytes, data: bytes, bound: int) -> None:
    if getattr(_local, "full", None) == (str(nearby_path()), bound):
        return
    try:
        with _opened(bound) as connection:
            connection.execute("INSERT OR REPLACE INTO images VALUES (?, ?)", (sha256, data))
    except (sqlite3.Error, OSError) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            _local.full = (str(nearby_path()), bound)


def bound_bytes() -> int:
    """Of the local copies, by SANAKIT_REMOTE_CACHE_GB; 0 keeps none. Raises SK0104."""
    stated = os.environ.get(SETTING, "")
    try:
        gigabytes = float(stated or DEFAULT_GB)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < 1e9:
        raise SanakitError("SK0104", f"{SETTING}={stated!r}, expected gigabytes, 0 or more")
    return int(gigabytes * 1e9)


def nearby_path() -> Path:
    return cache_dir() / "remote" / "images.sqlite"


def _opened(bound: int) -> sqlite3.Connection:
    """This thread's connection; the file is made where there is none."""
    path = nearby_path()
    key = (os.getpid(), str(path), bound)
    if getattr(_local, "key", None) != key:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=WAIT)
        connection.execute(f"PRAGMA page_size = {PAGE}")
        connection.execute("PRAGMA synchronous = OFF")  # hashes tell what a crash of the machine has torn
        connection.execute("CREATE TABLE IF NOT EXISTS images (sha256 BLOB PRIMARY KEY, data BLOB)")
        connection.execute(f"PRAGMA max_page_count = {max(2, bound // PAGE)}")
        _local.key, _local.connection = key, connection
    opened: sqlite3.Connection = _local.connection
    return opened
