"""Faults of resuming."""

from pathlib import Path
from typing import Any

from fault_world import World, fault
from system_faults import trained

from sanakit.assembly import LatentDiffusion
from sanakit.contracts import GateResult
from sanakit.training.checkpoint import latest, load_checkpoint, save_checkpoint
from sanakit.training.parameters import check_movement, parameter_digests


def saved(world: World, name: str, facts: dict[str, Any]) -> tuple[Path, LatentDiffusion, Any]:
    _, system, state = trained(world, steps=2)
    folder = world.fresh(name)
    save_checkpoint(folder, system.core, state, facts)
    checkpoint = latest(folder)
    assert checkpoint
    return checkpoint, system, state


FACTS = {"train.learning_rate": 1e-3, "train.batch_size": 16, "images": "a"}


@fault("learning rate changed by resuming", threads="Automodel 763, 3883", gate="resume", code="SK0505", stage="full")
def other_rate(world: World) -> list[GateResult]:
    folder, system, state = saved(world, "rate", FACTS)
    load_checkpoint(folder, system.core, state, FACTS | {"train.learning_rate": 2e-3})
    return []


@fault(
    "batch size changed by resuming: the order of the data moves",
    threads="accelerate 2016; llm-foundry 1277",
    gate="resume",
    code="SK0505",
    stage="full",
)
def other_batch(world: World) -> list[GateResult]:
    folder, system, state = saved(world, "batch", FACTS)
    load_checkpoint(folder, system.core, state, FACTS | {"train.batch_size": 8})
    return []


@fault("EMA missing from the checkpoint", threads="PixArt-sigma 156", gate="resume", code="SK0505", stage="full")
def ema_lost(world: World) -> list[GateResult]:
    folder, system, state = saved(world, "ema", FACTS)
    (folder / "ema.safetensors").unlink()
    load_checkpoint(folder, system.core, state, FACTS)
    return []


@fault(
    "checkpoint cut short by a crash",
    threads="accelerate, Sana latest.pth, Automodel 3254, KempnerForge 102",
    gate="resume",
    code="SK0505",
    stage="full",
)
def cut(world: World) -> list[GateResult]:
    folder, system, state = saved(world, "cut", FACTS)
    weights = (folder / "core.safetensors").read_bytes()
    (folder / "core.safetensors").write_bytes(weights[: len(weights) // 2])
    load_checkpoint(folder, system.core, state, FACTS)
    return []


@fault(
    "a wrapper trains a copy: nothing that is saved moves",
    threads="speculators 765",
    gate="training step",
    code="SK0508",
    stage="full",
)
def copy_trained(world: World) -> list[GateResult]:
    start, _, _ = trained(world, steps=1)
    digests = parameter_digests(start.core)
    check_movement(start.core, digests)
    return []
