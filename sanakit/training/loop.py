"""The training loop: one readable function over cached latents and embeddings, on one process or many.

What a step sees is a function of (seed, step) alone (batches.py): a resumed run repeats nothing and loses nothing, on
any number of ranks. `accelerate` owns precision and DDP, on the device of the placement; FSDP2 is torch's own.
"""

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sanakit.assembly import LatentDiffusion
from sanakit.data.cache import read_ahead
from sanakit.data.dataset import LatentDataset
from sanakit.distributed import STOP, agreed_figures, world_size
from sanakit.errors import SanakitError
from sanakit.flow import interpolate, velocity_loss
from sanakit.training.batches import Batch, TrainOptions, blame_of, draw_batch, draw_by, joined
from sanakit.training.parameters import clip_gradients, update_ema
from sanakit.training.schedules import learning_rate_at
from sanakit.training.state import CoreWithEncoder, TrainState, layer_groups, new_state
from sanakit.training.watch import Watch

__all__ = ["CoreWithEncoder", "TrainState", "descend", "draw_batch", "fit", "layer_groups", "new_state", "presence"]


def fit(
    system: LatentDiffusion,
    data: LatentDataset | None,
    options: TrainOptions,
    state: TrainState,
    *,
    until: int | None = None,
    after_step: Callable[[int, float, Batch, Tensor], None] = lambda step, loss, batch, predicted: None,
    rate: Callable[[int, TrainOptions], float] = learning_rate_at,
    draw: Callable[[int, slice], Batch] | None = None,
    watch: Watch | None = None,
) -> TrainState:
    """Train the core (and the text encoder, where state has one) on velocities; see `descend`.

    draw: the batch of a step and of this rank's rows, by default `draw_batch` from the data; data: None where `draw`
    reads none.
    """
    wrapped = copy.copy(system)
    wrapped.core = state.model  # type: ignore[assignment]

    def objective(part: Batch) -> tuple[Tensor, Tensor, Batch]:
        if state.encoder is not None:
            part = replace(part, prompt=state.encoder(list(part.texts)))
        noisy = interpolate(part.latents, part.noise, part.sigmas)
        predicted = wrapped.velocity(noisy, part.sigmas, part.prompt)
        return velocity_loss(predicted, part.latents, part.noise).mean(), predicted, part

    def finished(step: int, loss: float, parts: list[Batch], predicted: Tensor) -> None:
        after_step(step, loss, joined(parts), predicted)

    if draw is None:
        assert data is not None
        draw = partial(draw_batch, system, data, options)
    with nullcontext() if data is None else data.encoders_held():
        return descend(
            draw_by(data, options, draw),
            objective,
            options,
            state,
            until=until,
            after_step=finished,
            rate=rate,
            watch=watch,
            blame=lambda batch: "" if data is None else blame_of(data, batch),
        )


def presence(group: dict[str, Any], step: int, warmup: int) -> float:
    """A group that `joins` at a later step: 0 before it, then its own warm-up to 1."""
    joins = group.get("joins", 0)
    if not joins:
        return 1.0
    return min(1.0, max(0, step - joins + 1) / max(1, warmup))


def descend(
    draw: Callable[[int], Any],
    objective: Callable[[Any], tuple[Tensor, Tensor, Any]],
    options: TrainOptions,
    state: TrainState,
    *,
    until: int | None = None,
    after_step: Callable[[int, float, list[Any], Tensor], None],
    rate: Callable[[int, TrainOptions], float] = learning_rate_at,
    watch: Watch | None = None,
    blame: Callable[[Any], str] = lambda batch: "",
) -> TrainState:
    """The loop: from state.step to `until` (max_steps), or to the step border after a signal (state.stopped).

    draw: this rank's batch of a step, with `map` and `split`. objective: a micro-batch to its mean loss, its
    predictions and itself as it was used. blame: says why. Raises SK0501 before a step that is not finite.
    """
    accelerator = state.accelerator
    assert accelerator is not None and state.model is not None
    state.stopped = 0
    state.module.train()
    steps = range(state.step, options.max_steps if until is None else until)
    watch = watch or Watch()
    watch.at(state.step, 0)
    if accelerator.scaler is not None and state.scaler is not None:
        accelerator.scaler.load_state_dict(state.scaler)
    with STOP.at_step_border():
        for step, drawn in read_ahead(steps, draw, options.workers):
            learning_rate = rate(step, options)
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate * group.get("scale", 1.0) * presence(group, step, options.warmup)

            watch.at(step, 1)
            batch = drawn.map(state.placement.put)
            losses, predictions, used = _backward(batch, objective, options, state, watch)
            value, norm, finite, stop = _update(state, options, step, losses, lambda: blame(batch))
            state.optimizer.zero_grad(set_to_none=True)

            watch.at(step, 3)
            state.step, state.learning_rate, state.grad_norm = step + 1, learning_rate, norm
            if state.ema is not None and finite:
                update_ema(state.ema, state.module, min(options.ema_decay, (1 + step) / (10 + step)))
            after_step(state.step, value, used, torch.cat(predictions))
            if stop:
                state.stopped = stop
                break
            watch.at(step + 1, 0)
        watch.at(state.step, 3)
    if accelerator.scaler is not None:
        state.scaler = accelerator.scaler.state_dict()
    return state


def _backward(
    batch: Any,
    objective: Callable[[Any], tuple[Tensor, Tensor, Any]],
    options: TrainOptions,
    state: TrainState,
    watch: Watch,
) -> tuple[list[Tensor], list[Tensor], list[Any]]:
    """Gradients of a batch, a micro-batch at a time: losses and predictions, detached, and the micro-batches as they
    were used. Ranks exchange gradients with the last one."""
    accelerator = state.accelerator
    assert accelerator is not None
    replicas = [m for m in (state.model, state.encoder) if m is not None]
    losses, predictions, used = [], [], []
    for number, part in enumerate(batch.split(options.accumulate), 1):
        with ExitStack() as unsynchronised:
            for replica in replicas if number < options.accumulate else []:
                unsynchronised.enter_context(accelerator.no_sync(replica))
            loss, predicted, seen = objective(part)
            loss = loss / options.accumulate
            watch.at(state.step, 2)
            accelerator.backward(loss)
        losses.append(loss.detach())
        predictions.append(predicted.detach())
        used.append(seen)
    return losses, predictions, used


def _update(
    state: TrainState, options: TrainOptions, step: int, losses: list[Tensor], blame: Callable[[], str]
) -> tuple[float, float, bool, int]:
    """An optimiser step with the gradients that are there: loss over all ranks, gradient norm, whether the step was
    taken, and the signal that asks to stop (0: none). Raises SK0501 where loss or gradient is not finite too often."""
    accelerator = state.accelerator
    assert accelerator is not None
    for group in state.optimizer.param_groups:
        if not presence(group, step, options.warmup):  # neither moments, nor decay, nor share of the norm
            for parameter in group["params"]:
                parameter.grad = None
    accelerator.unscale_gradients(state.optimizer)  # of this state only: several may share the accelerator
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    length = clip_gradients(trained, options.max_grad_norm)
    # the only place of a step where the host waits for the device
    total, norm, stop = agreed_figures(torch.stack(losses).sum(), length, STOP.number)
    value = total / world_size()
    scaled = accelerator.scaler is not None  # fp16: the scaler leaves out a step whose gradient overflowed
    finite = math.isfinite(value) and (scaled or math.isfinite(norm))
    if finite:
        state.optimizer.step()
    elif len(state.skipped) >= options.max_skipped:
        raise SanakitError("SK0501", f"loss {value}, gradient norm {norm} at step {step}{blame()}")
    else:
        state.skipped.append(step)
        if scaled:  # it has unscaled this step's gradients: a lower scale, and ready for the next step
            accelerator.scaler.update()
    return value, norm, finite, stop
