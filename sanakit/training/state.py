"""What trains: a core with its optimiser, averages and history, on the device while it works and in the host's memory
while it waits."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sanakit.core.kernels import serve_by_kernels
from sanakit.distributed import local, make_accelerator, shard, world_size
from sanakit.errors import SanakitError
from sanakit.placement import Placement, host
from sanakit.text_encoders import TextEncoder
from sanakit.training.batches import TrainOptions
from sanakit.training.optimizers import OPTIMIZERS, Record

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class TrainState:
    """What a checkpoint holds beside the core. model: the core as accelerate wraps it for several ranks.

    module: what is kept and averaged: the core, or with its text encoder where both are trained; encoder: that one,
    wrapped. extras: named tensors of monitors and the like. history: rows of metrics and readings so far. stopped:
    the signal.
    """

    step: int
    optimizer: torch.optim.Optimizer
    module: nn.Module
    ema: dict[str, Tensor] | None = None
    model: nn.Module | None = None
    encoder: nn.Module | None = None
    accelerator: "Accelerator | None" = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    scaler: dict[str, Any] | None = None  # fp16: the loss scale as this state left it
    stopped: int = 0
    learning_rate: float = 0.0  # of the step before, and the norm of its gradient
    grad_norm: float = 0.0
    placement: Placement = field(default_factory=host)
    parked: bool = False  # it waits in the host's memory
    away: list[tuple[dict[str, Any], str]] = field(
        default_factory=list
    )  # slots of the optimiser that were on the device


class CoreWithEncoder(nn.Module):
    """Core and text encoder as one module: what is kept and averaged where both are trained."""

    def __init__(self, core: nn.Module, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.core, self.text_encoder = core, text_encoder


def new_state(
    core: nn.Module,
    groups: list[dict],
    options: TrainOptions,
    text_encoder: TextEncoder | None = None,
    placement: Placement | None = None,
) -> TrainState:
    """An optimiser over parameter groups; a group's `scale` multiplies the learning rate. text_encoder: trained too,
    its parameters among the groups. placement: whose device the state is on, by default the CPU. Raises SK0104 for
    options that do not go together, SK0901 for a package."""
    placement = placement or host()
    if options.batch_size % (world_size() * options.accumulate):
        raise SanakitError(
            "SK0104",
            f"train.batch_size {options.batch_size} does not divide by {world_size()} ranks x {options.accumulate} "
            "micro-batches",
        )
    sharded = options.parallel == "fsdp" and world_size() > 1
    record = OPTIMIZERS[options.optimizer]
    if sharded:
        _refuse_sharded(options, record)
    if options.gradient_checkpointing:
        core.enable_gradient_checkpointing()  # type: ignore[operator]
    accelerator = make_accelerator(placement.train_precision(options.precision), placement.device)
    accelerator.free_memory()  # of an earlier state: a race makes several
    if hasattr(core, "_original_forward"):  # accelerate leaves a core that it knows as it was, precision included
        core.forward = core._original_forward
    core._is_accelerate_prepared = False  # type: ignore[assignment]
    if sharded:
        groups = shard(core, groups, options.precision, accelerator.device)
    model = core if sharded else accelerator.prepare(core)
    if options.kernels == "triton":
        serve_by_kernels(core, accelerator.device)  # type: ignore[arg-type]
    if options.compile:
        model = torch.compile(model)
    module = core if text_encoder is None else CoreWithEncoder(core, text_encoder)
    encoder = None if text_encoder is None else accelerator.prepare(text_encoder)
    optimizer = record.make(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
    optimizer = accelerator.prepare(optimizer)
    ema = {k: local(v).clone() for k, v in module.state_dict().items()} if options.ema_decay else None
    return TrainState(
        step=0,
        optimizer=optimizer,
        module=module,
        ema=ema,
        model=model,
        encoder=encoder,
        accelerator=accelerator,
        scaler=None if accelerator.scaler is None else torch.amp.GradScaler("cpu").state_dict(),
        placement=placement,
    )


def _refuse_sharded(options: TrainOptions, record: Record) -> None:
    wrong = {
        "train.precision fp16": "the loss scale is not agreed on over shards" if options.precision == "fp16" else "",
        f"train.optimizer {options.optimizer}": record.unsharded,
        "train.compile": "blocks are gathered while they run" if options.compile else "",
        "train.kernels triton": "they read whole weights" if options.kernels == "triton" else "",
    }
    for name, why in wrong.items():
        if why:
            told = f"{name} does not go with train.parallel fsdp: {why}"
            raise SanakitError("SK0104", told, fix="Use train.parallel=ddp, or train.optimizer=adamw.")


def layer_groups(core: nn.Module, groups: list[dict], decay: float) -> list[dict]:
    """Optimiser groups split by block: block i of L gets decay ** (L - 1 - i) of its group's learning rate."""
    if decay == 1.0:
        return groups
    names = {id(p): name for name, p in core.named_parameters()}
    depth = len(core.transformer_blocks)  # type: ignore[arg-type]
    split: dict[tuple[str, float], dict] = {}
    for group in groups:
        for parameter in group["params"]:
            block = re.match(r"transformer_blocks\.(\d+)\.", names[id(parameter)])
            factor = decay ** (depth - 1 - int(block[1])) if block else 1.0
            scale = group["scale"] * factor
            split.setdefault((group["name"], scale), group | {"params": [], "scale": scale})["params"].append(parameter)
    return list(split.values())


@contextmanager
def at_work(state: TrainState | None) -> Iterator[None]:
    """The state on its device; in the host's memory afterwards, so that what waits holds no device memory."""
    if state is not None:
        resume(state)
    try:
        yield
    finally:
        if state is not None:
            park(state)


def park(state: TrainState) -> None:
    """Weights, moments and averages into the host's memory; gradients are dropped. Sharded states stay."""
    if (
        state.parked
        or not state.placement.accelerated
        or any(hasattr(p, "full_tensor") for p in state.module.parameters())
    ):
        return
    for parameter in state.module.parameters():
        parameter.grad = None
    slots = [(moments, name) for moments in state.optimizer.state.values() for name in moments]
    state.away = [
        (moments, name)
        for moments, name in slots
        if isinstance(moments[name], Tensor) and moments[name].device.type != "cpu"
    ]
    _move(state, state.placement.take)
    state.parked = True


def resume(state: TrainState) -> None:
    """A parked state back on its device."""
    if state.parked:
        _move(state, state.placement.put)
        state.parked = False


@torch.no_grad()
def _move(state: TrainState, change: Callable[[Tensor], Tensor]) -> None:
    for tensor in [*state.module.parameters(), *state.module.buffers()]:
        tensor.data = change(tensor.data)
    for slots, name in state.away:
        slots[name] = change(slots[name])
    for name, value in (state.ema or {}).items():
        state.ema[name] = change(value)  # type: ignore[index]
