"""Checkpoints that are whole or not there: write aside, hash, fsync, rename, then move LATEST, then prune.

safetensors and JSON only; the manifest with every file's SHA-256 comes last and carries its own. Sharded states are
gathered and written by rank 0, so a checkpoint fits any number of ranks.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sanakit.data.store import file_hash, save_tensors
from sanakit.distributed import barrier, copy_into, is_main, whole
from sanakit.errors import SanakitError
from sanakit.hashing import hash_record
from sanakit.train import TrainState

KEEP = 2


def save_checkpoint(folder: Path, core: nn.Module, state: TrainState, facts: dict[str, Any]) -> Path:
    """Write `folder/step-N`: core, optimiser, average, extras, history, manifest. Every rank calls it; rank 0 writes.

    Raises SK0903 when the disk is full; the earlier checkpoints then stay as they were.
    """
    files = {
        "core": {k: whole(v) for k, v in core.state_dict().items()},
        "optimizer": {
            f"{name}:{key}": whole(value)
            for name, slots in optimizer_slots(core, state).items()
            for key, value in slots.items()
        },
        "extras": state.extras,
    }
    if state.ema is not None:
        files["ema"] = {k: whole(v) for k, v in sharded_ema(core, state.ema).items()}
    final = folder / f"step-{state.step:08d}"
    if is_main():
        try:
            _write(folder, final, files, state, facts)
        except OSError as error:
            shutil.rmtree(folder / f".{final.name}", ignore_errors=True)
            raise SanakitError("SK0903", f"cannot write {final}: {error}") from error
    barrier()
    return final


def _write(
    folder: Path, final: Path, files: dict[str, dict[str, Tensor]], state: TrainState, facts: dict[str, Any]
) -> None:
    aside, replaced = folder / f".{final.name}", folder / f".{final.name}.replaced"
    for stale in folder.glob(".step-*"):  # of a killed process
        shutil.rmtree(stale)
    aside.mkdir(parents=True)
    for name, tensors in files.items():
        save_tensors(tensors, aside / f"{name}.safetensors")
    (aside / "history.json").write_text(json.dumps(state.history))
    scaler = state.accelerator.scaler if state.accelerator is not None else None
    record = {
        "step": state.step,
        "facts": facts,
        "skipped": state.skipped,
        "scaler": None if scaler is None else scaler.state_dict(),
        "hashes": {p.name: file_hash(p) for p in sorted(aside.iterdir())},
    }
    record = json.loads(json.dumps(record))
    (aside / "manifest.json").write_text(json.dumps({"sha256": hash_record(record), "record": record}))
    for path in aside.iterdir():
        _flush(path)
    _flush(aside)
    if final.exists():
        final.rename(replaced)
    aside.rename(final)
    _flush(folder)
    pointer = folder / "LATEST.tmp"
    pointer.write_text(final.name)
    _flush(pointer)
    pointer.replace(folder / "LATEST")
    _flush(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    for old in [p for p in sorted(folder.glob("step-*")) if p != final][: -KEEP + 1]:
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
            name.split(".")[0]: load_file(folder / name) for name in record["hashes"] if name.endswith("safetensors")
        }
        history = json.loads((folder / "history.json").read_text())
        targets = core.state_dict()
        if targets.keys() != files["core"].keys():
            raise KeyError(f"core tensors {sorted(targets.keys() ^ files['core'].keys())[:3]}")
        for name, value in files["core"].items():
            copy_into(targets[name], value)
        _fill_optimizer(core, state, files["optimizer"])
        if state.ema is not None:
            averages = sharded_ema(core, state.ema)
            for name, value in files["ema"].items():
                copy_into(averages[name], value)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SanakitError("SK0505", f"{folder}: {type(error).__name__}: {error}") from error
    if state.accelerator is not None and state.accelerator.scaler is not None and record["scaler"]:
        state.accelerator.scaler.load_state_dict(record["scaler"])
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


def preflight(folder: Path, size: int) -> None:
    """Reserve the room of KEEP + 1 checkpoints less those that are there, and give it back. Raises SK0903 in time."""
    if not is_main():
        return
    present = sum(p.stat().st_size for p in folder.glob("step-*/*"))
    dummy = folder / ".preflight"
    needed = max(size, (KEEP + 1) * size - present)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with dummy.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, needed)
    except OSError as error:
        raise SanakitError(
            "SK0903",
            f"{folder}: {KEEP + 1} checkpoints of {size / 1e6:,.1f} MB do not fit ({error.strerror}); "
            f"{shutil.disk_usage(folder.parent).free / 1e6:,.1f} MB are free",
        ) from error
    finally:
        dummy.unlink(missing_ok=True)


def optimizer_slots(core: nn.Module, state: TrainState) -> dict[str, dict[str, Tensor]]:
    """Moments and step counts by parameter name."""
    names = {id(p): name for name, p in core.named_parameters()}
    return {
        names[id(p)]: {key: torch.as_tensor(value) for key, value in slots.items()}
        for p, slots in state.optimizer.state.items()
    }


def _fill_optimizer(core: nn.Module, state: TrainState, tensors: dict[str, Tensor]) -> None:
    parameters = dict(core.named_parameters())
    for key, value in tensors.items():
        name, slot = key.rsplit(":", 1)
        parameter = parameters[name]
        if slot == "step":
            target = value.to(parameter.device).clone()
        else:
            target = torch.zeros_like(parameter, requires_grad=False)
            copy_into(target, value)
        state.optimizer.state[parameter][slot] = target


def sharded_ema(core: nn.Module, ema: dict[str, Tensor]) -> dict[str, Tensor]:
    """The average with the core's own sharding; views of the same memory."""
    out = {}
    for name, value in core.state_dict().items():
        average = ema[name]
        if hasattr(value, "device_mesh"):
            from torch.distributed.tensor import DTensor

            average = DTensor.from_local(
                average, value.device_mesh, value.placements, shape=value.shape, stride=value.stride()
            )
        out[name] = average
    return out


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
