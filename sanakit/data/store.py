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
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sanakit import inventory
from sanakit.distributed import barrier, is_main, rank, world_size
from sanakit.errors import SanakitError
from sanakit.inventory import MANIFEST, at_work, entry_key, file_hash

SHARD_BYTES = 256 << 20
HASHED_BYTES = 1 << 30  # an entry up to this size is hashed whenever it is opened; `sanakit cache verify` hashes any
SPOT_CHECKS = 4
DAMAGED = "The cache entry is damaged."
SPOT_TOLERANCE = 0.01  # relative L2; other kernels of the same model stay below it, another model does not
PACKAGES = ("sanakit", "torch", "diffusers", "transformers", "numpy", "pillow")


def row_hashes(items: Iterable[bytes]) -> Tensor:
    """The first 8 bytes of every item's SHA-256 as int64. (N,)"""
    digests = [int.from_bytes(hashlib.sha256(item).digest()[:8], "big", signed=True) for item in items]
    return torch.tensor(digests, dtype=torch.int64)


class Rows:
    """A tensor (N, ...) over memory-mapped shards: `rows[indices]`, `rows[indices, view]`, `rows[:n, 0]` read and
    finish just those rows."""

    def __init__(self, shards: list[Tensor], index: Tensor, finish: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        self.shards, self.index, self.finish = shards, index, finish
        self.ends = torch.tensor([len(s) for s in shards]).cumsum(0)
        self.shape = torch.Size((len(index), *shards[0].shape[1:]))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> Tensor:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        where = self.index[first]
        flat = where.reshape(-1)
        shard = torch.bucketize(flat, self.ends, right=True)
        out = torch.empty((len(flat), *self.shape[1:]), dtype=self.shards[0].dtype)
        for number in shard.unique().tolist():
            mine = (shard == number).nonzero()[:, 0]
            start = int(self.ends[number]) - len(self.shards[number])
            out[mine] = self.shards[number][flat[mine] - start]
        if rest:
            positions = torch.arange(len(flat)) if any(isinstance(r, Tensor) for r in rest) else slice(None)
            out = out[(positions, *rest)]
        return self.finish(out).reshape(where.shape + out.shape[1:])

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.shards[0].element_size()


class Entry(inventory.Entry):
    """An entry whose tensors can be read."""

    def read(self) -> dict[str, list[Tensor]]:
        """Memory-mapped tensors by name, one a shard. Raises SK0404 for damage, named by shard."""
        wrong = self.damage(hashes=self.nbytes <= HASHED_BYTES)
        if wrong:
            raise SanakitError("SK0404", wrong[0], cause=DAMAGED, fix=cure(self.folder.parent))
        try:
            shards = [load_file(self.folder / shard["name"]) for shard in self.manifest["shards"]]
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
    """Fill an entry shard by shard; ranks take turns, and shards that another writer finished are kept.

    compute: tensors of a range of rows, first dimension the rows. Raises SK0903 when the disk is full.
    """
    content = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
    folder = root / f"{facts['kind']}-{entry_key(facts, content)}"
    per_shard = max(1, SHARD_BYTES // max(1, row_bytes))
    parts = [range(start, min(start + per_shard, len(rows))) for start in range(0, len(rows), per_shard)]
    names = [f"{number:05d}.safetensors" for number in range(len(parts))]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with at_work(folder):
            for number in range(rank(), len(parts), world_size()):
                path, shard_rows = folder / names[number], rows[parts[number].start : parts[number].stop]
                if not _holds(path, shard_rows, facts):
                    _place(compute(parts[number]) | {"rows": shard_rows}, path, facts)
            barrier()
        manifest = {
            "facts": facts,
            "rows": content,
            "count": len(rows),
            "environment": environment(),
            "shards": [
                {"name": n, "rows": len(p), "bytes": (folder / n).stat().st_size, "sha256": file_hash(folder / n)}
                for n, p in zip(names, parts, strict=True)
            ],
        }
        if is_main():
            write_aside(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        barrier()
    except OSError as error:
        raise SanakitError("SK0903", f"cannot write {folder}: {error}") from error
    return Entry(folder, manifest)


def spot_check(
    entry: Entry,
    where: Tensor,
    stored: Callable[[Tensor], Tensor],
    recompute: Callable[[list[int]], Tensor],
    tolerance: float = SPOT_TOLERANCE,
) -> None:
    """Compute some rows again; SK0404 names the row, the difference and the packages that have changed."""
    chosen = torch.linspace(0, len(where) - 1, min(SPOT_CHECKS, len(where))).long()
    old, new = stored(where[chosen]).float(), recompute(chosen.tolist()).float()
    error = ((old - new).flatten(1).norm(dim=1) / new.flatten(1).norm(dim=1).clamp_min(1e-6)).tolist()
    worst = max(range(len(error)), key=error.__getitem__)
    if not error[worst] <= tolerance:
        now, then = environment(), entry.manifest["environment"]
        changed = [f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]]
        raise SanakitError(
            "SK0404",
            f"{entry.folder}: row {int(chosen[worst])} computed again differs by {error[worst]:.2g} of its size, "
            f"at most {tolerance} expected; {'; '.join(changed) or 'the packages are the same'}",
        )


@functools.cache
def environment() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """safetensors, made contiguous; what the system refuses is an OSError, not the library's own type."""
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, f"{path.name}: {error}") from error


def write_aside(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _place(tensors: dict[str, Tensor], path: Path, facts: dict[str, Any]) -> None:
    """Write aside, flush, link: the first whole shard stays, no matter which process writes it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        save_tensors(tensors, temporary, metadata={"facts": json.dumps(facts)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
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
