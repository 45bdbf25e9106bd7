"""A training run under way: what its steps leave behind beside the weights (rows, readings, checkpoints), and its end.

What the steps of a core record is `core_journal.py`; those of a VAE,
`tune_vae.py` and `tune_decoder.py`.
"""

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sanakit.contracts import Reading
from sanakit.data.failures import Failures, no_failures
from sanakit.distributed import DATA_STOP, STOP, barrier, exit_code, gathered_rows, is_main
from sanakit.errors import SanakitError
from sanakit.swap.gradual import SETTLED
from sanakit.swap.resume import ROLLED_BACK, drop_later, pick_up, watched
from sanakit.swap.settings import flat_config
from sanakit.training.checkpoint import Saver, checkpoint_bytes, preflight
from sanakit.training.loop import TrainOptions, TrainState
from sanakit.training.monitors import Monitors
from sanakit.training.parameters import check_movement
from sanakit.training.schedules import decay_start, learning_rate_at, saves_at
from sanakit.training.tracking import Trackers
from sanakit.training.watch import Watch

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

MOVED_BY = 10  # steps after which a trained parameter that stands still is an error


def go_on_from(swap: "Swap", state: TrainState, options: TrainOptions, facts: dict[str, Any]) -> Path:
    """Bring the state to where an earlier run stopped, and the rows of the run folder with it; returns the folder of
    checkpoints. Raises SK0505 for checkpoints of another run, SK0903 where the disk is too small."""
    checkpoints = swap.run.path / "checkpoints"
    pick_up(checkpoints, swap.resume, state, facts)
    for row in state.history:
        swap.run.append(row["file"], [row["row"]])
    drop_later(swap.run, state.step)
    branch = decay_start(options.schedule, options.max_steps)
    preflight(checkpoints, checkpoint_bytes(state.module, state), always=branch)
    return checkpoints


@dataclass(kw_only=True)
class Journal:
    """Bookkeeping of one run; `after_step` is what the loop calls. A subclass says what a step shows (`observe`) and
    what is measured at an evaluation step (`evaluate`).

    name: the strategy, or what is trained. facts: what a resume must agree with. untouched: digests of the parameters
    at the start. failures: images of the stream that cannot be read.
    """

    swap: "Swap"
    name: str
    options: TrainOptions
    state: TrainState
    checkpoints: Path
    facts: dict[str, Any]
    untouched: dict[str, str]
    monitors: Monitors
    failures: Failures = field(default_factory=no_failures)
    losses: list[float] = field(init=False)  # since the last evaluation

    def __post_init__(self) -> None:
        config = self.swap.config
        self.monitors.restore(self.state.extras)
        self.losses = self._kept_losses()
        self.evaluate_every = max(1, self.options.max_steps // config.monitors.num_evaluations)
        self.trackers = Trackers(config.train.report_to, self.swap.run.path, flat_config(config))
        branch = decay_start(self.options.schedule, self.options.max_steps)
        self.saver = Saver(self.checkpoints, asynchronous=config.train.async_checkpoints, always=branch)
        self.watch = Watch(self.checkpoints.resolve().parent / ".ranks", config.train.hang_timeout)
        self.clock = time.perf_counter()

    def observe(self, batch: Any, predicted: Tensor) -> None:
        """What a step shows to the monitors."""

    def evaluate(self, step: int) -> None:
        """Monitors report, held-out images are measured, and both are recorded."""

    def draw(self, step: int) -> None:
        """Samples while training, every `train.sample_every` steps."""

    def run(self, go_on: Callable[[], object]) -> None:
        """`go_on` trains from the state to the last step. A signal saves at the next step border and exits with 143,
        or 130 for Ctrl-C. Raises SK0511 where a monitor asks to stop, SK0402 (saved in the same way) where too many
        images cannot be read."""
        try:
            watched(go_on, self.state, self.monitors, self.saver, self.facts, self._went_back)
            self._save_if_stopped()
        except SanakitError as error:
            if error.code == "SK0402":  # so many images in a row that no batch can be drawn: the step did not begin
                self.save()
            raise
        finally:
            self.watch.close()
            self.saver.close()
            self.trackers.close()
            self.monitors.close()
        barrier()
        if self.state.stopped == DATA_STOP:
            STOP.number = 0
            raise self.failures.refusal(f"stopped at step {self.state.step}, saved in {self.checkpoints}")
        if self.state.stopped:
            if is_main():
                print(
                    f"{signal.Signals(self.state.stopped).name}: stopped at step {self.state.step} of "
                    f"{self.options.max_steps}, saved in {self.checkpoints}; the same command with --resume auto "
                    "goes on",
                    file=sys.stderr,
                )
            sys.exit(exit_code(self.state.stopped))
        if self.options.max_steps >= 3:
            check_movement(self.state.module, self.untouched)

    def rate(self, step: int, options: TrainOptions) -> float:
        """The schedule's learning rate, as far as alarms have not lowered it."""
        return self.monitors.factor * learning_rate_at(step, options)

    def after_step(self, step: int, loss: float, batch: Any, predicted: Tensor) -> None:
        """Raises MonitorRequest where an alarm asks to stop or to go back."""
        section = self.swap.config.train
        self.swap.progress(f"training {self.name}", step, self.options.max_steps)
        if step - 1 in self.state.skipped:
            self.record("ledger.jsonl", [{"name": f"step {step - 1}", "reason": f"loss {loss}: step left out"}])
        else:
            self.losses.append(loss)
            self.observe(batch, predicted)
        if step == min(MOVED_BY, self.options.max_steps) >= 3:
            check_movement(self.state.module, self.untouched, self._joined_after(step - SETTLED))
        if step % section.log_every == 0 or step == self.options.max_steps:
            self._tell_failures()
        if step % section.log_every == 0:
            self._log(step, loss)
        if step % self.evaluate_every == 0:
            self.evaluate(step)
        if section.sample_every and step % section.sample_every == 0:
            self.draw(step)
        if saves_at(step, self.options, section.checkpoint_every):
            self.save()

    def record(self, file: str, rows: list[dict[str, Any]]) -> None:
        """Rows of the run folder that a checkpoint keeps too, so that a resume repeats none."""
        self.swap.run.append(file, rows)
        self.state.history += [{"file": file, "row": row} for row in rows]

    def record_readings(self, readings: list[Reading], step: int) -> None:
        """Into readings.jsonl and to the trackers."""
        self.record("readings.jsonl", [r.as_dict() | {"stage": "full"} for r in readings])
        self.trackers.log({f"monitor/{r.name} {r.where}".strip(): r.value for r in readings}, step)

    def save(self) -> None:
        losses = torch.tensor(self.losses, dtype=torch.float64)
        back = {key: value for key, value in self.state.extras.items() if key == ROLLED_BACK}
        self.state.extras = self.monitors.tensors() | {"losses": losses} | back
        self.saver.save(self.state.module, self.state, self.facts)

    def _went_back(self) -> None:
        """The rows of the run folder as of the state: those after its step are written again."""
        self.losses = self._kept_losses()
        for file in ("metrics.jsonl", "readings.jsonl"):
            self.swap.run.keep_rows(file, lambda row: row.get("stage") != "full")
            self.swap.run.append(file, [row["row"] for row in self.state.history if row["file"] == file])
        drop_later(self.swap.run, self.state.step)

    def _kept_losses(self) -> list[float]:
        losses: list[float] = self.state.extras.get("losses", torch.empty(0)).tolist()
        return losses

    def _save_if_stopped(self) -> None:
        """Between two checkpoints, after a signal."""
        if self.state.stopped:
            self._tell_failures()
        every = self.swap.config.train.checkpoint_every
        if self.state.stopped and not saves_at(self.state.step, self.options, every):
            self.save()

    def _tell_failures(self) -> None:
        """Images that could not be read since the last time, of all ranks, into the ledger."""
        if self.failures.names and (rows := gathered_rows(self.failures.take_new())):
            self.record("ledger.jsonl", rows)

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
