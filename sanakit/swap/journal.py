"""A training run under way: what its steps leave behind beside the weights (rows, readings, samples, checkpoints)."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sanakit.assembly import LatentDiffusion
from sanakit.evaluation.figures import save_grid, to_uint8
from sanakit.evaluation.held_out import HeldOut
from sanakit.sampling import sample_images
from sanakit.strategies.base import Strategy
from sanakit.swap.gradual import SETTLED
from sanakit.swap.settings import flat_config
from sanakit.training.checkpoint import Saver
from sanakit.training.loop import Batch, TrainOptions, TrainState
from sanakit.training.monitors import STILL, Monitors
from sanakit.training.parameters import check_movement
from sanakit.training.schedules import decay_start, learning_rate_at, saves_at
from sanakit.training.tracking import Trackers

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

SAMPLES = 4  # images of a grid while training
MOVED_BY = 10  # steps after which a trained parameter that stands still is an error


@dataclass(kw_only=True)
class Journal:
    """Bookkeeping of one run; `after_step` is what the loop calls.

    untouched: digests of the parameters at the start. facts: what a resume must agree with. evaluate: held-out errors
    of the system as it is now.
    """

    swap: "Swap"
    strategy: type[Strategy]
    system: LatentDiffusion
    options: TrainOptions
    state: TrainState
    checkpoints: Path
    facts: dict[str, Any]
    untouched: dict[str, str]
    monitors: Monitors
    evaluate: Callable[[], HeldOut]
    losses: list[float] = field(init=False)  # since the last evaluation
    drift_alarms: int = field(init=False)

    def __post_init__(self) -> None:
        config, rows = self.swap.config, self.state.history
        self.monitors.restore(self.state.extras)
        self.losses = self.state.extras.get("losses", torch.empty(0)).tolist()
        self.drift_alarms = sum(bool(r["row"].get("alarm")) and r["row"]["name"] in STILL for r in rows)
        self.evaluate_every = max(1, self.options.max_steps // config.monitors.num_evaluations)
        self.trackers = Trackers(config.train.report_to, self.swap.run.path, flat_config(config))
        branch = decay_start(self.options.schedule, self.options.max_steps)
        self.saver = Saver(self.checkpoints, asynchronous=config.train.async_checkpoints, always=branch)
        self.clock = time.perf_counter()

    def rate(self, step: int, options: TrainOptions) -> float:
        """The schedule's learning rate, as far as alarms have not lowered it."""
        return self.monitors.factor * learning_rate_at(step, options)

    def after_step(self, step: int, loss: float, batch: Batch, predicted: Tensor) -> None:
        """Raises MonitorRequest where an alarm asks to stop or to go back."""
        section = self.swap.config.train
        self.swap.progress(f"training {self.strategy.name}", step, self.options.max_steps)
        if step - 1 in self.state.skipped:
            self.record("ledger.jsonl", [{"name": f"step {step - 1}", "reason": f"loss {loss}: step left out"}])
        else:
            self._observe(loss, batch, predicted)
        if step == min(MOVED_BY, self.options.max_steps) >= 3:
            check_movement(self.state.module, self.untouched, self._joined_after(step - SETTLED))
        if step % section.log_every == 0:
            self._log(step, loss)
        if step % self.evaluate_every == 0:
            self._evaluate(step)
        if section.sample_every and step % section.sample_every == 0:
            self._draw(step)
        if saves_at(step, self.options, section.checkpoint_every):
            self.save()

    def record(self, file: str, rows: list[dict[str, Any]]) -> None:
        """Rows of the run folder that a checkpoint keeps too, so that a resume repeats none."""
        self.swap.run.append(file, rows)
        self.state.history += [{"file": file, "row": row} for row in rows]

    def save(self) -> None:
        losses = torch.tensor(self.losses, dtype=torch.float64)
        self.state.extras = self.monitors.tensors() | {"losses": losses}
        self.saver.save(self.state.module, self.state, self.facts)

    def save_if_stopped(self) -> None:
        """Between two checkpoints, after a signal."""
        every = self.swap.config.train.checkpoint_every
        if self.state.stopped and not saves_at(self.state.step, self.options, every):
            self.save()

    def close(self) -> None:
        self.saver.close()
        self.trackers.close()
        self.monitors.close()

    def _observe(self, loss: float, batch: Batch, predicted: Tensor) -> None:
        self.losses.append(loss)
        if not self.strategy.teacher:  # what the base draws is no sample of the data
            self.monitors.observe(batch, predicted)

    def _log(self, step: int, loss: float) -> None:
        now, every = time.perf_counter(), self.swap.config.train.log_every
        values = {
            "loss": loss,
            "learning_rate": self.state.learning_rate,
            "grad_norm": self.state.grad_norm,
            "seconds": (now - self.clock) / every,
            "trained_parameters": sum(p.numel() for g in self.state.optimizer.param_groups for p in g["params"])
            - sum(p.numel() for p in self._joined_after(step - 1)),
        }
        self.clock = now
        self.swap.run.append("steps.jsonl", [{"step": step} | values])
        self.trackers.log({f"train/{key}": value for key, value in values.items()}, step)

    def _joined_after(self, step: int) -> list[Tensor]:
        """Parameters of blocks that join later than a step."""
        return [p for g in self.state.optimizer.param_groups if g.get("joins", 0) > step for p in g["params"]]

    def _evaluate(self, step: int) -> None:
        """Monitors report, and the held-out images are evaluated."""
        readings = [] if self.strategy.teacher else self.monitors.report(step)
        self.drift_alarms += sum(r.alarm and r.name in STILL for r in readings)
        request = self.monitors.act(readings)
        self.record("readings.jsonl", [r.as_dict() | {"stage": "full"} for r in readings])
        result = self.evaluate()
        row = {"stage": "full", "strategy": self.strategy.name, "step": step}
        train = row | {"split": "train", "loss": float(np.mean(self.losses)), "by_sigma": None}
        test = row | {"split": "held_out", "loss": result.loss, "by_sigma": result.by_sigma}
        self.losses = []
        self.record("metrics.jsonl", [train, test])
        self.trackers.log({f"monitor/{r.name} {r.where}".strip(): r.value for r in readings}, step)
        self.trackers.log({"held_out/loss": result.loss}, step)
        if request:
            raise request

    def _draw(self, step: int) -> None:
        if self.state.encoder is not None:
            with self.system.placement.holding(self.system.text_encoder):
                self.system.null = self.system.text_encoder.null()
        seed = self.swap.config.train.seed
        drawn = sample_images(self.system, self.swap.sample_prompts()[:SAMPLES], seed=seed)
        save_grid(self.swap.run.path, f"samples-step-{step:08d}", drawn, "samples", f"step {step}", "")
        self.trackers.images("samples", to_uint8(drawn), step)
