"""A callback of Lightning's Trainer: streams of a run are watched, readings go to its loggers, an alarm may stop it.

    trainer = Trainer(callbacks=[DriftCallback(lambda batch, outputs: {"latents": batch["latents"]})])

Written for `lightning` and `pytorch_lightning` 2; without either the class still follows the hooks' interface, so that
nothing is imported for it.
"""

import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from sanakit.contracts import Reading
from sanakit.errors import SanakitError
from sanakit.integrations.watch import Watch, metrics_of

ACTIONS = ("warn", "stop", "none")


def _callback_class() -> type[Any]:
    """Lightning's own base class, of the package that the process has imported already; `object` without Lightning."""
    packages = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
    for name in sorted(packages, key=lambda name: name not in sys.modules):
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(packages[name]).Callback
    return object


class DriftCallback(_callback_class()):  # type: ignore[misc]
    """values: (batch, outputs) -> {"latents": tensor, "embeddings": (tensor, mask) ...} of a training batch; what
    `training_step` returned is `outputs`. module: the path of a submodule whose output is watched as activations, such
    as `core.patch_embed`. on_alarm: warn, stop (the run ends after this batch) or none. steps: batches of the whole
    run, by default what the trainer estimates. options: as of `Watch`: references, num_evaluations, alpha, band.

    Raises SK0104 for another action, for neither values nor module, and where the number of steps cannot be told.
    """

    def __init__(
        self,
        values: Callable[[Any, Any], Mapping[str, Any]] | None = None,
        *,
        module: str = "",
        on_alarm: str = "warn",
        steps: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if on_alarm not in ACTIONS:
            raise SanakitError("SK0104", f"on_alarm is {on_alarm!r}, expected {', '.join(ACTIONS)}")
        if values is None and not module:
            fix = "Give values=lambda batch, outputs: {'latents': ...}, or module='name'."
            raise SanakitError("SK0104", "there is nothing to watch: neither values nor module", fix=fix)
        self.values, self.module, self.on_alarm = values, module, on_alarm
        self.steps, self.options = steps, options
        self.watch: Watch | None = None
        self.handle: Any = None
        self.kept: dict[str, Any] = {}

    @property
    def alarms(self) -> list[Reading]:
        return [] if self.watch is None else self.watch.alarms

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.watch = Watch(steps=self.steps or batches_of(trainer), report=_silent, **self.options)
        if self.kept:
            self.watch.load_state_dict(self.kept)
        if self.module:
            try:
                submodule = pl_module.get_submodule(self.module)
            except AttributeError as error:
                raise SanakitError("SK0104", f"the model has no module {self.module!r}: {error}") from error
            self.handle = self.watch.attach(submodule)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.watch is not None
        if self.values is not None:
            self.watch.update(**self.values(batch, outputs))
        readings = self.watch.advance()
        if readings:
            for logger in trainer.loggers:
                logger.log_metrics(metrics_of(readings), step=trainer.global_step)
        for reading in (reading for reading in readings if reading.alarm):
            if self.on_alarm != "none":
                told = f"step {trainer.global_step}: {reading.title}: {reading.value:.3g} at {reading.where}"
                warnings.warn(told, stacklevel=2)
            if self.on_alarm == "stop":
                trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    def state_dict(self) -> dict[str, Any]:
        """Part of Lightning's checkpoint: the evidence so far."""
        return self.kept if self.watch is None else self.watch.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept = state_dict


def batches_of(trainer: Any) -> int:
    """Training batches of the whole run, as the trainer estimates them. Raises SK0104 where it cannot."""
    estimate = float(trainer.estimated_stepping_batches) * int(getattr(trainer, "accumulate_grad_batches", 1) or 1)
    if not 1 <= estimate < float("inf"):
        fix = "Give DriftCallback(steps=...), or the Trainer max_steps or max_epochs."
        raise SanakitError("SK0104", f"the trainer's run has {estimate:g} batches, expected a finite number", fix=fix)
    return int(estimate)


def _silent(readings: list[Reading], step: int) -> None:
    """The callback itself reports: it has the trainer's loggers and its step."""
