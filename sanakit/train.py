"""The training loop: one readable function over cached latents and embeddings, on one process or many.

Batch order, noise, sigmas, caption choice and prompt dropout are functions of (seed, step) alone: a resumed run
repeats nothing and loses nothing, on any number of ranks, and strategies that race see the same pictures, sigmas and
(at equal latent shape) noise. `accelerate` owns devices, precision and the DDP or FSDP2 wrapper.
"""

import copy
import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sanakit.assembly import LatentDiffusion
from sanakit.data.cache import LatentDataset, read_ahead
from sanakit.distributed import STOP, local, make_accelerator, rank, shard, sum_over_ranks, whole, world_size
from sanakit.errors import SanakitError
from sanakit.flow import interpolate, sample_sigmas, shift_sigmas, velocity_loss
from sanakit.text_encoders import PromptEmbeds

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """learning_rate: peak. warmup: steps. decay: cosine to zero at max_steps, else constant.

    batch_size: pictures of a step over all ranks and micro-batches; accumulate: micro-batches of a rank.
    max_skipped: steps with a loss or gradient that is not finite that may be left out before the run stops.
    """

    max_steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 20
    decay: bool = True
    max_grad_norm: float = 1.0
    prompt_dropout: float = 0.1
    sigmas: str = "logit-normal"  # or "uniform"
    seed: int = 0
    ema_decay: float = 0.0  # 0 keeps no average
    accumulate: int = 1
    precision: str = "fp32"  # or "bf16", "fp16": autocast; weights, gradients and optimiser stay in fp32
    parallel: str = "ddp"  # or "fsdp", where there are several ranks
    gradient_checkpointing: bool = False
    max_skipped: int = 0


@dataclass(frozen=True)
class Batch:
    latents: Tensor  # (B, C, h, w)
    noise: Tensor
    sigmas: Tensor  # (B,)
    prompt: PromptEmbeds
    indices: Tensor | None = None  # (B,) rows of the data set

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        prompt = PromptEmbeds(change(self.prompt.embeds), change(self.prompt.mask))
        indices = None if self.indices is None else change(self.indices)
        return Batch(change(self.latents), change(self.noise), change(self.sigmas), prompt, indices)

    def split(self, parts: int) -> "list[Batch]":
        size = len(self.latents) // parts
        return [self.map(lambda x, i=i: x[i * size : (i + 1) * size]) for i in range(parts)]


@dataclass
class TrainState:
    """What a checkpoint holds beside the core. model: the core as accelerate wraps it for several ranks.

    extras: named tensors of monitors and the like. history: rows of metrics and readings so far. stopped: the signal.
    """

    step: int
    optimizer: torch.optim.Optimizer
    ema: dict[str, Tensor] | None = None
    model: nn.Module | None = None
    accelerator: "Accelerator | None" = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    stopped: int = 0


def draw_batch(
    system: LatentDiffusion, data: LatentDataset, options: TrainOptions, step: int, rows: slice = slice(None)
) -> Batch:
    """The batch of a step (or `rows` of it), from (seed, step) alone; an epoch visits every picture once."""
    indices = batch_indices(len(data), options.batch_size, step, options.seed)
    count, shift = len(indices), float(system.flow_shift or 1.0)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    if options.sigmas == "uniform":
        sigmas = shift_sigmas(torch.rand(count, generator=generator), shift)
    else:
        sigmas = sample_sigmas(count, shift=shift, generator=generator)
    view = torch.randint(data.latents.shape[1], (count,), generator=generator)
    choice = torch.randint(1 << 30, (count,), generator=generator)
    drop = torch.rand(count, generator=generator) < options.prompt_dropout
    seeds = torch.randint(1 << 62, (count,), generator=generator)  # a picture's noise does not depend on its rank
    latents = data.latents[indices[rows], view[rows]]
    noise = torch.empty_like(latents)
    for row, seed in zip(noise, seeds[rows].tolist(), strict=True):
        row.normal_(generator=generator.manual_seed(seed))
    prompt = system.drop_prompts(data.prompts(indices[rows], choice[rows]), drop[rows])
    return Batch(latents, noise, sigmas[rows], prompt, indices[rows])


def batch_indices(total: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Picture indices of a step: consecutive slices of one permutation an epoch, across epoch borders."""
    start = step * batch_size
    parts, needed = [], batch_size
    while needed:
        epoch, offset = divmod(start, total)
        parts.append(epoch_order(total, seed * 7_919 + epoch)[offset : offset + needed])
        start += len(parts[-1])
        needed -= len(parts[-1])
    return torch.cat(parts)


@functools.lru_cache(maxsize=2)
def epoch_order(total: int, seed: int) -> Tensor:
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))


def learning_rate_at(step: int, options: TrainOptions) -> float:
    """Linear warm-up, then cosine to zero (or constant)."""
    warm = min(1.0, (step + 1) / max(1, options.warmup))
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / options.max_steps)) if options.decay else 1.0
    return options.learning_rate * warm * cosine


def new_state(core: nn.Module, groups: list[dict], options: TrainOptions) -> TrainState:
    """AdamW over parameter groups; a group's `scale` multiplies the learning rate. Raises SK0104 for a batch that does
    not divide by ranks and micro-batches."""
    if options.batch_size % (world_size() * options.accumulate):
        raise SanakitError(
            "SK0104",
            f"train.batch_size {options.batch_size} does not divide by {world_size()} ranks x {options.accumulate} "
            "micro-batches",
        )
    if options.precision == "fp16" and options.parallel == "fsdp" and world_size() > 1:
        raise SanakitError("SK0104", "train.precision fp16 does not go with train.parallel fsdp", fix="Use bf16.")
    if options.gradient_checkpointing:
        core.enable_gradient_checkpointing()  # type: ignore[operator]
    accelerator = make_accelerator(options.precision)
    accelerator.free_memory()  # of an earlier state: a race makes several
    if hasattr(core, "_original_forward"):  # accelerate leaves a core that it knows as it was, precision included
        core.forward = core._original_forward
    core._is_accelerate_prepared = False  # type: ignore[assignment]
    sharded = options.parallel == "fsdp" and world_size() > 1
    if sharded:
        groups = shard(core, groups, options.precision, accelerator.device)
    model = core if sharded else accelerator.prepare(core)
    optimizer = torch.optim.AdamW(
        groups, lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.99), fused=True
    )
    optimizer = accelerator.prepare(optimizer)
    ema = {k: local(v).clone() for k, v in core.state_dict().items()} if options.ema_decay else None
    return TrainState(step=0, optimizer=optimizer, ema=ema, model=model, accelerator=accelerator)


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


def fit(
    system: LatentDiffusion,
    data: LatentDataset,
    options: TrainOptions,
    state: TrainState,
    *,
    until: int | None = None,
    after_step: Callable[[int, float, Batch, Tensor], None] = lambda step, loss, batch, predicted: None,
    rate: Callable[[int, TrainOptions], float] = learning_rate_at,
    draw: Callable[[int, slice], Batch] | None = None,
) -> TrainState:
    """Train from state.step to `until` (max_steps), or to the step border after a signal (state.stopped).

    Raises SK0501 before a step with a loss or gradient that is not finite. after_step sees this rank's rows. draw: the
    batch of a step and of this rank's rows, by default `draw_batch` from the data.
    """
    core, accelerator = system.core, state.accelerator
    assert accelerator is not None and state.model is not None
    wrapped = copy.copy(system)
    wrapped.core = state.model
    core.train()
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    own = options.batch_size // world_size()
    rows = slice(rank() * own, (rank() + 1) * own)
    steps = range(state.step, options.max_steps if until is None else until)
    batch_of = draw or (lambda step, rows: draw_batch(system, data, options, step, rows))
    with STOP.at_step_border():
        for step, drawn in read_ahead(steps, lambda step: batch_of(step, rows)):
            learning_rate = rate(step, options)
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate * group.get("scale", 1.0)

            batch = drawn.map(lambda x: x.to(accelerator.device))
            losses, predictions = [], []
            for number, part in enumerate(batch.split(options.accumulate), 1):
                last = number == options.accumulate
                with nullcontext() if last else accelerator.no_sync(state.model):
                    noisy = interpolate(part.latents, part.noise, part.sigmas)
                    predicted = wrapped.velocity(noisy, part.sigmas, part.prompt)
                    loss = velocity_loss(predicted, part.latents, part.noise).mean() / options.accumulate
                    accelerator.backward(loss)
                losses.append(loss.detach())
                predictions.append(predicted.detach())
            norm = accelerator.clip_grad_norm_(trained, options.max_grad_norm)
            norm = float(whole(norm))
            total, stop = sum_over_ranks(torch.stack(losses).sum(), STOP.number)
            value = total / world_size()
            scaled = accelerator.scaler is not None  # fp16: the scaler leaves out a step whose gradient overflowed
            finite = math.isfinite(value) and (scaled or math.isfinite(norm))
            if finite:
                state.optimizer.step()
            elif len(state.skipped) >= options.max_skipped:
                raise SanakitError("SK0501", f"loss {value}, gradient norm {norm} at step {step}{_blame(data, batch)}")
            else:
                state.skipped.append(step)
            state.optimizer.zero_grad(set_to_none=True)

            state.step = step + 1
            if state.ema is not None and finite:
                update_ema(state.ema, core, min(options.ema_decay, (1 + step) / (10 + step)))
            after_step(state.step, value, batch, torch.cat(predictions))
            if stop:
                state.stopped = stop
                break
    return state


def _blame(data: LatentDataset, batch: Batch) -> str:
    """The pictures whose own latents or prompts are not finite, if any."""
    if batch.indices is None:
        return ""
    bad = ~(batch.latents.isfinite().flatten(1).all(1) & batch.prompt.embeds.isfinite().flatten(1).all(1))
    names = [data.names[i] for i in batch.indices[bad].tolist()]
    return f"; not finite in the data: {', '.join(names[:3])}" if names else "; the data of the step is finite"


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], core: nn.Module, decay: float) -> None:
    pairs = [(ema[name], local(value)) for name, value in core.state_dict().items() if value.is_floating_point()]
    averages: Iterable[Tensor] = [a for a, _ in pairs]
    torch._foreach_lerp_(list(averages), [v for _, v in pairs], 1 - decay)


def parameter_digests(core: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter (this rank's shard), to see what moved."""
    return {
        name: hashlib.sha256(local(p).detach().cpu().contiguous().view(torch.uint8).numpy()).hexdigest()
        for name, p in core.named_parameters()
    }


def check_movement(core: nn.Module, before: dict[str, str]) -> None:
    """SK0508 when a parameter that is trained stands still, or a frozen one moved, since `before`."""
    now = parameter_digests(core)
    wanted = {name: p.requires_grad and local(p).numel() > 0 for name, p in core.named_parameters()}
    still = [name for name in now if wanted[name] and now[name] == before[name]]
    moved = [name for name, p in core.named_parameters() if not p.requires_grad and now[name] != before[name]]
    if still or moved:
        parts = [f"{len(still)} trained parameters stand still, first {still[0]}"] if still else []
        parts += [f"{len(moved)} frozen parameters moved, first {moved[0]}"] if moved else []
        raise SanakitError("SK0508", "; ".join(parts))
