"""What lies in a cache folder, told without torch: entries of the store (data/store.py), whole, damaged or unfinished.

An entry is a folder `latents-KEY` or `embeddings-KEY`, KEY being 20 hexadecimal digits, that holds nothing but
manifest.json, shards `00000.safetensors` and files that one of these was being written to. Every other folder or file,
and every link, belongs to somebody else: it is neither listed nor removed. An entry into which somebody else put a file
is listed and left alone.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from sanakit.files import cache_path, write_aside
from sanakit.hashing import hash_record

try:
    import fcntl
except ImportError:  # Windows: nobody is seen at work
    fcntl = None  # type: ignore[assignment]

MANIFEST = "manifest.json"
NAME = re.compile(r"(latents|embeddings)-[0-9a-f]{20}")
SHARD = re.compile(r"\d{5,}\.safetensors")
PART = re.compile(r"\.(manifest\.json|\d{5,}\.safetensors)\.[0-9a-f]{32}")
BESIDE = re.compile(rf"\.{NAME.pattern}\.safetensors\.tmp")  # the file for drift that `encode` was writing
SHA256 = re.compile(r"[0-9a-f]{64}")
RACY_NS = 100_000_000  # a file that changed within this time of being read may change again unseen
SHARD_FIELDS = {"name": str, "rows": int, "bytes": int, "sha256": str}
FIELDS = {"facts": dict, "rows": str, "count": int, "environment": dict, "shards": list}


class State(StrEnum):
    WHOLE = "whole"  # the manifest is sound and every shard has its size
    DAMAGED = "damaged"  # the manifest cannot be used, or a shard is missing or of another size
    UNFINISHED = "unfinished"  # no manifest: encoding was stopped, or goes on


@dataclass(frozen=True)
class Entry:
    """A folder with a sound manifest: facts, environment, count, shards ({name, rows, bytes, sha256})."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        return dict(self.manifest["facts"])

    @property
    def nbytes(self) -> int:
        return sum(shard["bytes"] for shard in self.manifest["shards"])

    def damage(self, *, hashes: bool = True, anew: bool = True) -> list[str]:
        """What is wrong, one line a shard; empty when the entry is whole. anew: read every byte, also of shards whose
        size and time are those of the last time."""
        known_hash = file_hash if anew else remembered_hash
        lines = (_damage(self.folder / shard["name"], shard, hashes, known_hash) for shard in self.manifest["shards"])
        return [line for line in lines if line]


@dataclass(frozen=True, kw_only=True)
class Item:
    """A folder of the store, or a file that was left half-written beside one.

    files: what removing it removes. foreign: names in it that are not the store's; such an entry is never removed.
    """

    path: Path
    state: State
    detail: str = ""  # what is damaged
    entry: Entry | None = None  # where the manifest is sound
    files: tuple[Path, ...] = ()
    foreign: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.path.name.lstrip(".").partition("-")[0]

    @property
    def nbytes(self) -> int:
        return sum(size_of(file) for file in self.files)

    @property
    def age(self) -> float:
        """Seconds since any of its files, or the folder, was written."""
        return time.time() - max(modified(path) for path in (self.path, *self.files))

    def as_dict(self) -> dict[str, Any]:
        return {
            "folder": str(self.path),
            "kind": self.kind,
            "state": str(self.state),
            "detail": self.detail,
            "count": self.entry.manifest["count"] if self.entry else None,
            "bytes": self.nbytes,
            "facts": self.entry.facts if self.entry else {},
        }


def scan(root: Path, kind: str = "") -> list[Item]:
    """Everything below `root` that is certainly the store's, of one kind or of all; shards are not hashed."""
    items = []
    try:
        paths = sorted(root.iterdir())
    except OSError:  # a cache that does not exist, or that cannot be read, holds nothing for us
        return []
    for path in paths:
        if path.is_symlink():
            continue
        if NAME.fullmatch(path.name) and path.name.startswith(kind) and path.is_dir():
            files, foreign = own_files(path)
            if not foreign or path / MANIFEST in files:
                items.append(_examine(path, files, foreign))
        elif not kind and BESIDE.fullmatch(path.name) and path.is_file():
            items.append(Item(path=path, state=State.UNFINISHED, files=(path,)))
    return items


def entries(root: Path, kind: str = "") -> list[Entry]:
    """Entries with a sound manifest below `root`, those behind a link too; a damaged one hides no other."""
    listed = []
    for path in sorted(root.glob(f"{kind or '*'}-*")):
        if NAME.fullmatch(path.name) and (path / MANIFEST).is_file():
            try:
                listed.append(Entry(path, read_manifest(path)))
            except ValueError:
                continue
    return listed


def read_manifest(folder: Path) -> dict[str, Any]:
    """A manifest of the right fields whose key is the folder's. Raises ValueError that says what is wrong."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not _has(manifest, FIELDS) or not all(_has(shard, SHARD_FIELDS) for shard in manifest["shards"]):
        raise ValueError(f"{path} lacks fields of a manifest: {', '.join([*FIELDS, *SHARD_FIELDS])}")
    held = [shard["rows"] for shard in manifest["shards"]]
    if not held or min(held) < 1 or sum(held) != manifest["count"]:
        raise ValueError(f"{path} states {manifest['count']} rows, its {len(held)} shards hold {sum(held)}")
    outside = [shard["name"] for shard in manifest["shards"] if not SHARD.fullmatch(shard["name"])]
    if outside:
        raise ValueError(f"{path} names {outside[0]!r:.60}, which is no shard of this folder")
    name = f"{manifest['facts'].get('kind')}-{entry_key(manifest['facts'], manifest['rows'])}"
    if folder.name != name:
        raise ValueError(f"{path} is the manifest of {name}: the folder was renamed or its facts edited")
    return manifest


def entry_key(facts: dict[str, Any], rows: str) -> str:
    return hash_record([facts, rows])[:20]


def own_files(folder: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The manifest, shards and half-written files, the manifest first; and the names of everything else."""
    try:
        paths = sorted(folder.iterdir(), key=lambda path: (path.name != MANIFEST, path.name))
    except OSError as error:
        return (), (f"{type(error).__name__}",)
    files, foreign = [], []
    for path in paths:
        named = path.name == MANIFEST or SHARD.fullmatch(path.name) or PART.fullmatch(path.name)
        if named and path.is_file() and not path.is_symlink():
            files.append(path)
        else:
            foreign.append(path.name)
    return tuple(files), tuple(foreign)


def remove(item: Item) -> None:
    """Delete the files that were listed, the manifest first so that a half-removed entry is never read, then the empty
    folder. Raises OSError where something new lies in it; that is left alone."""
    for file in item.files:
        file.unlink(missing_ok=True)
    if item.path.is_dir():
        item.path.rmdir()


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Says to `in_work` that this process fills the folder; the claim ends with the process."""
    handle = _lock(folder, shared=True)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def in_work(folder: Path) -> bool:
    """Whether a process of this machine is filling the folder right now."""
    try:
        handle = _lock(folder, shared=False)
    except BlockingIOError:
        return True
    if handle is not None:
        os.close(handle)
    return False


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_hash(path: Path) -> str:
    """The SHA-256 of a file, remembered in the cache by path, size and time; read again when one of them has
    changed."""
    status = path.stat()
    stamp = [str(path.resolve()), status.st_size, status.st_mtime_ns]
    record = cache_path() / "hashes" / f"{hash_record(stamp)[:32]}.txt"
    try:
        known = record.read_text(encoding="ascii")
        if SHA256.fullmatch(known):
            return known
    except (OSError, ValueError):
        pass
    value = file_hash(path)
    if time.time_ns() - status.st_mtime_ns > RACY_NS:
        with suppress(OSError):  # a cache that cannot be written only costs time
            record.parent.mkdir(parents=True, exist_ok=True)
            write_aside(record, value)
    return value


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _examine(folder: Path, files: tuple[Path, ...], foreign: tuple[str, ...]) -> Item:
    if folder / MANIFEST not in files:
        return Item(path=folder, state=State.UNFINISHED, files=files)
    try:
        entry = Entry(folder, read_manifest(folder))
    except ValueError as error:
        return Item(path=folder, state=State.DAMAGED, detail=str(error), files=files, foreign=foreign)
    wrong = entry.damage(hashes=False)
    return Item(
        path=folder,
        state=State.DAMAGED if wrong else State.WHOLE,
        detail=wrong[0] if wrong else "",
        entry=entry,
        files=files,
        foreign=foreign,
    )


def _damage(path: Path, shard: dict[str, Any], hashes: bool, known_hash: Callable[[Path], str]) -> str:
    try:
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != shard["bytes"]:
            return f"{path} has {path.stat().st_size} bytes, expected {shard['bytes']}"
        if hashes and known_hash(path) != shard["sha256"]:
            return f"{path} is damaged: its SHA-256 is not the manifest's"
    except OSError as error:
        return f"{path} cannot be read: {error}"
    return ""


def _has(record: Any, fields: dict[str, type]) -> bool:
    return isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in fields.items())


def _lock(folder: Path, *, shared: bool) -> int | None:
    """A descriptor that holds the lock; None where the system or the file system has none. BlockingIOError: taken."""
    if fcntl is None:
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if handle is not None:
            os.close(handle)
        if isinstance(error, BlockingIOError) and not shared:
            raise
        return None
    return handle
