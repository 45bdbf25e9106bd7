"""Checkpoints that are whole or not there: write aside, hash, fsync, rename, then move LATEST, then prune.

safetensors and JSON only; the manifest with every file's SHA-256 comes last and carries its own. Rank 0 writes, on
another thread where `Saver` is asynchronous, from copies that training cannot touch. Sharded tensors are written by
their own ranks through torch.distributed.checkpoint and read back on any number of ranks.
"""

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from sanakit.data.store import file_hash, save_tensors
from sanakit.distributed import barrier, copy_into, is_main
from sanakit.errors import SanakitError
from sanakit.files import flush, reserve
from sanakit.hashing import hash_record
from sanakit.training.loop import TrainState
from sanakit.training.optimizer_state import fill_optimizer, optimizer_slots
from sanakit.training.shards import SHARDED, read_shards, shard_moments, sharded_ema, write_shards

KEEP = 2


@dataclass(kw_only=True)
class Snapshot:
    """Copies of everything that one checkpoint holds. files: whole tensors. shards: sharded ones, live,
    written at once."""

    step: int
    record: dict[str, Any]
    history: str
    files: dict[str, dict[str, Tensor]]
    shards: dict[str, Tensor]


class Saver:
    """Saves into one folder, of which the newest `keep` stay, and that of step `always`, where it is given, as long as
    the run lasts. asynchronous: rank 0 writes on a thread of its own; one checkpoint at a time.

    Sharded states are written before `save` returns: every rank has its own part of them to write.
    """

    def __init__(
        self, folder: Path, *, asynchronous: bool = False, keep: int = KEEP, always: int | None = None
    ) -> None:
        self.folder, self.keep, self.always = folder, keep, always
        self._pool = ThreadPoolExecutor(1) if asynchronous else None
        self._pending: Future[None] | None = None

    def save(self, core: nn.Module, state: TrainState, facts: dict[str, Any]) -> None:
        """Every rank calls it. Raises SK0903 when the disk is full (of an asynchronous save, the next time)."""
        self.wait()
        snapshot = take(core, state, facts)
        if self._pool is None or snapshot.shards:
            write(self.folder, snapshot, self.keep, self.always)
            barrier()
        elif is_main():
            self._pending = self._pool.submit(write, self.folder, snapshot, self.keep, self.always)

    def wait(self) -> None:
        """Until everything is on disk; raises what a write raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()


def save_checkpoint(folder: Path, core: nn.Module, state: TrainState, facts: dict[str, Any]) -> Path:
    """Write `folder/step-N`: core, optimiser, average, extras, history, manifest. Every rank calls it.

    Raises SK0903 when the disk is full; the earlier checkpoints then stay as they were.
    """
    Saver(folder).save(core, state, facts)
    return folder / f"step-{state.step:08d}"


def take(core: nn.Module, state: TrainState, facts: dict[str, Any]) -> Snapshot:
    """A copy of the state; core: what was trained, with its text encoder where that was."""
    slots = optimizer_slots(core, state)
    tensors = {
        "core": core.state_dict(),
        "optimizer": {
            f"{n}:{k}": v for n, entries in slots.items() for k, v in entries.items() if isinstance(v, Tensor)
        },
        "extras": state.extras,
    }
    if state.ema is not None:
        tensors["ema"] = sharded_ema(core, state.ema)
    files: dict[str, dict[str, Tensor]] = {name: {} for name in tensors}
    shards = {}
    for name, entries in tensors.items():
        for key, value in entries.items():
            if hasattr(value, "device_mesh"):
                shards[f"{name}/{key}"] = value.detach()
            else:
                files[name][key] = value.detach().cpu().clone() if is_main() else value
    scaler = state.accelerator.scaler if state.accelerator is not None else None
    record = {
        "step": state.step,
        "facts": facts,
        "skipped": state.skipped,
        "scaler": None if scaler is None else scaler.state_dict(),
        "optimizer": {
            "slots": {
                n: {k: v for k, v in entries.items() if not isinstance(v, Tensor)} for n, entries in slots.items()
            },
            "steps": [group.get("step") for group in state.optimizer.param_groups],
        },
    }
    return Snapshot(
        step=state.step,
        record=json.loads(json.dumps(record)),
        history=json.dumps(state.history),
        files=files,
        shards=shards,
    )


def write(folder: Path, snapshot: Snapshot, keep: int = KEEP, always: int | None = None) -> None:
    """Put a snapshot on disk: rank 0, and with shards every rank. Raises SK0903."""
    final = folder / f"step-{snapshot.step:08d}"
    aside = folder / f".{final.name}"
    try:
        if is_main():
            for stale in folder.glob(".step-*"):  # of a killed process
                shutil.rmtree(stale)
            aside.mkdir(parents=True)
        hashes: dict[str, str] = {}
        if snapshot.shards:
            barrier()
            hashes = write_shards(aside / SHARDED, snapshot.shards)
        if is_main():
            _write(folder, final, snapshot, hashes)
            prune(folder, final, keep, always)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise SanakitError("SK0903", f"cannot write {final}: {error}") from error


def _write(folder: Path, final: Path, snapshot: Snapshot, hashes: dict[str, str]) -> None:
    aside, replaced = folder / f".{final.name}", folder / f".{final.name}.replaced"
    for name, tensors in snapshot.files.items():
        save_tensors(tensors, aside / f"{name}.safetensors")
    (aside / "history.json").write_text(snapshot.history)
    hashes = hashes | {p.name: file_hash(p) for p in sorted(aside.iterdir()) if p.is_file()}
    record = snapshot.record | {"hashes": hashes}
    (aside / "manifest.json").write_text(json.dumps({"sha256": hash_record(record), "record": record}))
    for path in aside.iterdir():
        flush(path)
    flush(aside)
    if final.exists():
        final.rename(replaced)
    aside.rename(final)
    flush(folder)
    pointer = folder / "LATEST.tmp"
    pointer.write_text(final.name)
    flush(pointer)
    pointer.replace(folder / "LATEST")
    flush(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def prune(folder: Path, final: Path, keep: int = KEEP, always: int | None = None) -> None:
    """Remove old checkpoints: `final`, the newest `keep` - 1 others and that of step `always` stay."""
    kept = {final.name} if always is None else {final.name, f"step-{always:08d}"}
    others = [p for p in sorted(folder.glob("step-*")) if p.name not in kept]
    for old in others[: max(0, len(others) - keep + 1)]:
        (old / "manifest.json").unlink(missing_ok=True)  # first: half of a checkpoint is none
        shutil.rmtree(old)


def load_checkpoint(folder: Path, core: nn.Module, state: TrainState, facts: dict[str, Any]) -> None:
    """Restore everything that `save_checkpoint` wrote, in place, on any number of ranks.

    Raises SK0505 for damage (the file is named) or another configuration (every field that differs is named).
    """
    record = read_manifest(folder)
    other = record["facts"]
    facts = json.loads(json.dumps(facts))
    differing = [
        f"{key} is {other.get(key)}, this run has {facts.get(key)}"
        for key in dict.fromkeys([*facts, *other])
        if other.get(key) != facts.get(key)
    ]
    if differing:
        raise SanakitError("SK0505", f"{folder}: {'; '.join(differing)}")
    try:
        files = {
            name.split(".")[0]: load_file(folder / name)
            for name in record["hashes"]
            if name.endswith("safetensors") and "/" not in name
        }
        history = json.loads((folder / "history.json").read_text())
        sharded = any("/" in name for name in record["hashes"])
        targets = core.state_dict()
        averages = sharded_ema(core, state.ema) if state.ema is not None else {}
        moments = shard_moments(core, folder) if sharded else {}
        if sharded:
            places = {"core": targets, "optimizer": moments} | ({"ema": averages} if averages else {})
            in_shards = {
                f"{part}/{k}": v for part, every in places.items() for k, v in every.items() if k not in files[part]
            }
            read_shards(folder / SHARDED, in_shards)
        elif targets.keys() != files["core"].keys():
            raise KeyError(f"core tensors {sorted(targets.keys() ^ files['core'].keys())[:3]}")
        for name, value in files["core"].items():
            copy_into(targets[name], value)
        for name, value in files.get("ema", {}).items() if state.ema is not None else ():
            copy_into(averages[name], value)
        fill_optimizer(core, state, files["optimizer"] | moments, record["optimizer"])
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SanakitError("SK0505", f"{folder}: {type(error).__name__}: {error}") from error
    if state.accelerator is not None and state.accelerator.scaler is not None and record["scaler"]:
        state.accelerator.scaler.load_state_dict(record["scaler"])
        state.scaler = record["scaler"]
    state.extras, state.history, state.skipped = files["extras"], history, record["skipped"]
    state.step = record["step"]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest's record, when it and every file that it names are whole. Raises SK0505."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        record = manifest["record"]
        if hash_record(record) != manifest["sha256"]:
            raise SanakitError("SK0505", f"{folder / 'manifest.json'} is damaged: its hash is not its own")
        for name, digest in record["hashes"].items():
            if file_hash(folder / name) != digest:
                raise SanakitError("SK0505", f"{folder / name} is damaged: its hash is not the manifest's")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SanakitError("SK0505", f"{folder}: {type(error).__name__}: {error}") from error
    return record


def latest(folder: Path) -> Path | None:
    """Where LATEST points; after a kill between a rename and LATEST, the newest folder with a manifest."""
    pointer = folder / "LATEST"
    if pointer.is_file():
        named = folder / pointer.read_text().strip()
        if (named / "manifest.json").is_file():
            return named
    whole_ones = [p.parent for p in sorted(folder.glob("step-*/manifest.json"))]
    return whole_ones[-1] if whole_ones else None


def set_aside(folder: Path) -> None:
    """Rename an earlier run's checkpoints, so that a run that starts anew neither reads nor prunes them."""
    if folder.is_dir():
        number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}.{n}").exists())
        folder.rename(folder.with_name(f"{folder.name}.{number}"))


def checkpoint_bytes(core: nn.Module, state: TrainState) -> int:
    """Bytes of one checkpoint after the first step: weights, two moments a trained parameter, the average."""
    weights = sum(v.numel() * v.element_size() for v in core.state_dict().values())
    trained = sum(p.numel() for group in state.optimizer.param_groups for p in group["params"])
    extras = sum(v.numel() * v.element_size() for v in state.extras.values())
    return weights * (1 if state.ema is None else 2) + 8 * trained + extras


def preflight(folder: Path, size: int, *, always: int | None = None) -> None:
    """Reserve the room of KEEP + 1 checkpoints, and of the one that stays where a run keeps it (`always`, as of
    `Saver`), less those that are there, and give it back. Raises SK0903 in time."""
    if not is_main():
        return
    present = sum(p.stat().st_size for p in folder.glob("step-*/**/*") if p.is_file())
    dummy, count = folder / ".preflight", KEEP + 1 + (always is not None)
    needed = max(size, count * size - present)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reserve(dummy, needed)
    except OSError as error:
        raise SanakitError(
            "SK0903",
            f"{folder}: {count} checkpoints of {size / 1e6:,.1f} MB do not fit ({error.strerror}); "
            f"{shutil.disk_usage(folder.parent).free / 1e6:,.1f} MB are free",
        ) from error
    finally:
        dummy.unlink(missing_ok=True)
