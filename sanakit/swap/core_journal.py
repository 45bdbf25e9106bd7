"""What the steps of a training core leave behind: monitors of data and activations, held-out losses, samples."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from sanakit.assembly import LatentDiffusion
from sanakit.evaluation.figures import save_grid, to_uint8
from sanakit.evaluation.held_out import HeldOut
from sanakit.sampling import sample_images
from sanakit.strategies.base import Strategy
from sanakit.swap.journal import Journal
from sanakit.training.loop import Batch
from sanakit.training.monitors import STILL

SAMPLES = 4  # images of a grid while training


@dataclass(kw_only=True)
class CoreJournal(Journal):
    """measure: held-out losses of the system as it is now."""

    strategy: type[Strategy]
    system: LatentDiffusion
    measure: Callable[[], HeldOut]
    drift_alarms: int = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        rows = self.state.history
        self.drift_alarms = sum(bool(r["row"].get("alarm")) and r["row"]["name"] in STILL for r in rows)

    def observe(self, batch: Batch, predicted: Tensor) -> None:
        if not self.strategy.teacher:  # what the base draws is no sample of the data
            self.monitors.observe(batch, predicted)

    def evaluate(self, step: int) -> None:
        readings = [] if self.strategy.teacher else self.monitors.report(step)
        self.drift_alarms += sum(r.alarm and r.name in STILL for r in readings)
        request = self.monitors.act(readings)
        self.record_readings(readings, step)
        result = self.measure()
        row = {"stage": "full", "strategy": self.name, "step": step}
        train = row | {"split": "train", "loss": float(np.mean(self.losses)), "by_sigma": None}
        test = row | {"split": "held_out", "loss": result.loss, "by_sigma": result.by_sigma}
        self.losses = []
        self.record("metrics.jsonl", [train, test])
        self.trackers.log({"held_out/loss": result.loss}, step)
        if request:
            raise request

    def draw(self, step: int) -> None:
        if self.state.encoder is not None:
            with self.system.placement.holding(self.system.text_encoder):
                self.system.null = self.system.text_encoder.null()
        seed = self.swap.config.train.seed
        images = sample_images(self.system, self.swap.sample_prompts()[:SAMPLES], seed=seed)
        save_grid(self.swap.run.path, f"samples-step-{step:08d}", images, "samples", f"step {step}", "")
        self.trackers.images("samples", to_uint8(images), step)
