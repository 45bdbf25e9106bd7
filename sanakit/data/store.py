"""A content-addressed store of rows: sharded safetensors, written aside, read by memory map.

An entry is a folder `KIND-KEY`; KEY hashes the facts (everything that determines a row's value) and the rows' own
content hashes. A shard is linked into place whole and never replaced, so any number of writers may fill one entry and a
killed one goes on where it was; manifest.json with the shards' SHA-256 comes last, and a folder without it is not read.
"""

import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import shlex
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sanakit import inventory
from sanakit.data.rows import Rows as Rows
from sanakit.distributed import barrier, is_main, rank, world_size
from sanakit.errors import SanakitError
from sanakit.files import flush, write_aside
from sanakit.inventory import MANIFEST, at_work, entry_key, file_hash
from sanakit.ranks.sharing import all_ranks, alone, is_shared, shared

SHARD_BYTES = 256 << 20
HASHED_BYTES = 1 << 30  # an entry up to this size is hashed when it was changed; `sanakit cache verify` hashes any
DAMAGED = "The cache entry is damaged."
PACKAGES = ("sanakit", "torch", "diffusers", "transformers", "numpy", "pillow")


def row_hashes(items: Iterable[bytes]) -> Tensor:
    """The first 8 bytes of every item's SHA-256 as int64. (N,)"""
    digests = [int.from_bytes(hashlib.sha256(item).digest()[:8], "big", signed=True) for item in items]
    return torch.tensor(digests, dtype=torch.int64)


class Entry(inventory.Entry):
    """An entry whose tensors can be read."""

    def read(self) -> dict[str, list[Tensor]]:
        """Memory-mapped tensors by name, one a shard. Raises SK0404 for damage, named by shard."""
        wrong = self.damage(hashes=self.nbytes <= HASHED_BYTES, anew=False)
        if wrong:
            raise SanakitError("SK0404", wrong[0], cause=DAMAGED, fix=cure(self.folder.parent))
        try:
            shards = [load_file(self.folder / shard["name"]) for shard in self.manifest["shards"]]
            if "raw_latents" in shards[0]:  # entries of earlier versions: every image could be decoded
                shards = [{"failed": torch.zeros(len(s["rows"]), dtype=torch.bool)} | s for s in shards]
            return {name: [shard[name] for shard in shards] for name in shards[0]}
        except (SafetensorError, KeyError) as error:  # what is too large to be hashed whenever it is opened
            message = f"{self.folder} cannot be read: {type(error).__name__}: {error}"
            raise SanakitError("SK0404", message, cause=DAMAGED, fix=cure(self.folder.parent)) from error


def entries(root: Path, kind: str = "") -> list[Entry]:
    """Every entry below `root` whose manifest is sound, of one kind or of all; a damaged one hides no other."""
    return [Entry(entry.folder, entry.manifest) for entry in inventory.entries(root, kind)]


def cure(root: Path) -> str:
    return f"`sanakit cache prune {shlex.quote(str(root))} --damaged` removes it after asking; encoding makes it anew."


def find(root: Path, facts: dict[str, Any], rows: Tensor) -> tuple[Entry, dict[str, list[Tensor]], Tensor] | None:
    """An entry of these facts that holds every row, its shards, and where each row lies in it.

    Raises SK0404 where no whole entry does, but one whose shards are damaged could.
    """
    damage: SanakitError | None = None
    for entry in entries(root, facts["kind"]):
        if stated(entry.facts) == stated(facts) and entry.manifest["count"]:
            try:
                shards = entry.read()
            except SanakitError as error:
                damage = damage or error
                continue
            have = torch.cat(shards["rows"])
            ordered, order = have.sort(stable=True)
            place = torch.searchsorted(ordered, rows).clamp(max=len(have) - 1)
            if torch.equal(ordered[place], rows):
                return entry, shards, order[place]
    if damage is not None:
        raise damage
    return None


@dataclass(frozen=True)
class Union:
    """Rows that several entries hold together. where: (N,) the place of each in the joined shards, -1 where none has
    it."""

    entries: list[Entry]
    shards: dict[str, list[Tensor]]
    where: Tensor


def find_some(root: Path, facts: dict[str, Any], rows: Tensor) -> Union | None:
    """Entries of these facts that hold some of the rows, the fullest first; None where none does. Damaged ones, and
    those of other tensors than the first, are passed over."""
    holdings = []
    for entry in entries(root, facts["kind"]):
        if stated(entry.facts) != stated(facts) or not entry.manifest["count"]:
            continue
        with suppress(SanakitError):
            shards = entry.read()
            ordered, order = torch.cat(shards["rows"]).sort(stable=True)
            place = torch.searchsorted(ordered, rows).clamp(max=len(ordered) - 1)
            place = torch.where(ordered[place] == rows, order[place], -1)
            if (place >= 0).any():
                holdings.append((entry, shards, place))
    holdings.sort(key=lambda held: -int((held[2] >= 0).sum()))
    union: Union | None = None
    start = 0
    for entry, shards, place in holdings:
        if union is None:
            union = Union([], {name: [] for name in shards}, torch.full_like(rows, -1))
        new = (place >= 0) & (union.where < 0)
        if shards.keys() != union.shards.keys() or not new.any():
            continue
        union.entries.append(entry)
        union.where[new] = place[new] + start
        for name, parts in shards.items():
            union.shards[name] += parts
        start += int(entry.manifest["count"])
    return union


def stated(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts with those that entries of earlier versions leave out: squares were padded, other sizes cropped."""
    if facts["kind"] != "latents":
        return facts
    return {"fit": "pad" if isinstance(facts.get("size"), int) else "crop"} | facts


def _options(facts: dict[str, Any]) -> str:
    """The options of `encode` that make squares as these facts state them."""
    if facts["kind"] != "latents" or not isinstance(facts["size"], int):
        return ""
    return f", --image-size {facts['size']} --fit {facts['fit']}"


def refuse_other(root: Path, facts: dict[str, Any]) -> None:
    """SK0404: why no entry below `root` serves these facts, by the fields in which the nearest one differs."""
    damaged = [item.detail for item in inventory.scan(root, facts["kind"]) if item.state == inventory.State.DAMAGED]
    others = entries(root, facts["kind"])
    if not others and damaged:
        raise SanakitError("SK0404", damaged[0], cause=DAMAGED, fix=cure(root))
    if not others:
        raise SanakitError("SK0404", f"{root} holds no {facts['kind']}", fix="Fill it: sanakit encode --out DIR.")

    def different(e: Any) -> list[str]:
        return [k for k in facts if stated(e.facts).get(k) != facts[k]]

    nearest = min(others, key=lambda e: len(different(e)))
    fields = [f"{key} is {stated(nearest.facts).get(key)}, expected {facts[key]}" for key in different(nearest)]
    message = f"{nearest.folder}: {'; '.join(fields) or 'the images or captions: some of this run are not in it'}"
    fix = f"Run `sanakit encode` again with this run's components and data{_options(facts)}."
    if damaged:
        message, fix = f"{message}; another entry is damaged: {damaged[0]}", f"{fix} {cure(root)}"
    raise SanakitError("SK0404", message, fix=fix)


def write(
    root: Path,
    facts: dict[str, Any],
    rows: Tensor,
    compute: Callable[[range], dict[str, Tensor]],
    *,
    row_bytes: int,
) -> Entry:
    """Fill an entry shard by shard; ranks take turns, and shards that another writer finished are kept. The last
    shards, fewer than there are ranks, are computed by all of them together.

    compute: tensors of a range of rows, first dimension the rows; it may share its work (ranks/sharing.py). Raises
    SK0903 when the disk is full.
    """
    entry, _ = write_share(root, facts, rows, compute, row_bytes=row_bytes)
    assert entry is not None
    return entry


def write_share(
    root: Path,
    facts: dict[str, Any],
    rows: Tensor,
    compute: Callable[[range], dict[str, Tensor]],
    *,
    row_bytes: int,
    share: tuple[int, int] | None = None,
) -> tuple[Entry | None, int]:
    """As `write`, or with share (i, n) every n-th shard from the i-th on (0 is the first): one job of an array. The
    entry, None as long as other jobs have shards to write, and how many those are."""
    content = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
    folder = root / f"{facts['kind']}-{entry_key(facts, content)}"
    per_shard = max(1, SHARD_BYTES // max(1, row_bytes))
    parts = [range(start, min(start + per_shard, len(rows))) for start in range(0, len(rows), per_shard)]
    names = [f"{number:05d}.safetensors" for number in range(len(parts))]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with at_work(folder):
            pieces = [(folder / n, p, rows[p.start : p.stop]) for n, p in zip(names, parts, strict=True)]
            together = len(pieces) % world_size() if share is None and is_shared() else 0
            first, step = share or (rank(), world_size())
            with alone():
                for path, part, indices in pieces[first : len(pieces) - together : step]:
                    if not _holds(path, indices, facts):
                        _place(compute(part) | {"rows": indices}, path, facts)
            for path, part, indices in pieces[len(pieces) - together :]:  # fewer than there are ranks
                if not all_ranks(_holds(path, indices, facts)):
                    tensors = compute(part) | {"rows": indices}
                    if is_main():
                        _place(tensors, path, facts)
            barrier()
        if share is not None:
            held = [_holds(folder / n, rows[p.start : p.stop], facts) for n, p in zip(names, parts, strict=True)]
            if not all(held):
                return None, held.count(False)
        hashes = shared(names, lambda some: [file_hash(folder / name) for name in some])
        manifest = {
            "facts": facts,
            "rows": content,
            "count": len(rows),
            "environment": environment(),
            "shards": [
                {"name": n, "rows": len(p), "bytes": (folder / n).stat().st_size, "sha256": digest}
                for n, p, digest in zip(names, parts, hashes, strict=True)
            ],
        }
        if is_main():
            write_aside(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        barrier()
    except OSError as error:
        raise SanakitError("SK0903", f"cannot write {folder}: {error}") from error
    return Entry(folder, manifest), 0


@functools.cache
def environment() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """safetensors, made contiguous; what the system refuses is an OSError, not the library's own type."""
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, f"{path.name}: {error}") from error


def _place(tensors: dict[str, Tensor], path: Path, facts: dict[str, Any]) -> None:
    """Write aside, flush, link: the first whole shard stays, no matter which process writes it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        save_tensors(tensors, temporary, metadata={"facts": json.dumps(facts)})
        flush(temporary)
        if path.is_file() and not _holds(path, tensors["rows"], facts):
            path.unlink()
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _holds(path: Path, rows: Tensor, facts: dict[str, Any]) -> bool:
    """Whether the shard is whole and of these rows and facts: a folder that was renamed holds another entry's."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as shard:
            stated = json.loads((shard.metadata() or {}).get("facts", "null"))
            return stated == json.loads(json.dumps(facts)) and torch.equal(shard.get_tensor("rows"), rows)
    except (SafetensorError, ValueError):
        return False
