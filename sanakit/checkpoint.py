"""Checkpoints that are whole or not there: write aside, hash, rename, then move LATEST. safetensors and JSON only."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sanakit.errors import SanakitError
from sanakit.train import TrainState

KEEP = 2


def save_checkpoint(folder: Path, core: nn.Module, state: TrainState, facts: dict[str, Any]) -> Path:
    """Write `folder/step-N` with core, optimiser and manifest; the manifest comes last, LATEST after the rename."""
    final, aside = folder / f"step-{state.step:08d}", folder / f".step-{state.step}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    slots = state.optimizer.state_dict()["state"]
    tensors = {f"{index}.{key}": torch.as_tensor(value) for index, slot in slots.items() for key, value in slot.items()}
    save_file({k: v.contiguous() for k, v in core.state_dict().items()}, aside / "core.safetensors")
    save_file({k: v.contiguous() for k, v in tensors.items()}, aside / "optimizer.safetensors")
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(aside.iterdir())}
    (aside / "manifest.json").write_text(json.dumps({"step": state.step, "hashes": hashes, "facts": facts}))
    for path in aside.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    pointer = folder / "LATEST.tmp"
    pointer.write_text(final.name)
    pointer.replace(folder / "LATEST")
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)
    return final


def load_checkpoint(folder: Path, core: nn.Module, state: TrainState, facts: dict[str, Any]) -> None:
    """Restore core, optimiser and step in place. Raises SK0505 for damage or another configuration."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, digest in manifest["hashes"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise SanakitError("SK0505", f"{folder / name} is damaged: its hash is not the manifest's")
        for key, value in facts.items():
            if manifest["facts"].get(key) != value:
                raise SanakitError("SK0505", f"{folder}: {key} is {manifest['facts'].get(key)}, this run has {value}")
        core.load_state_dict(load_file(folder / "core.safetensors"))
        tensors = load_file(folder / "optimizer.safetensors")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SanakitError("SK0505", f"{folder}: {error}") from error
    slots: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        slots.setdefault(int(index), {})[key] = tensor
    state.optimizer.load_state_dict(state.optimizer.state_dict() | {"state": slots})
    state.step = manifest["step"]


def latest(folder: Path) -> Path | None:
    pointer = folder / "LATEST"
    return folder / pointer.read_text().strip() if pointer.is_file() else None
