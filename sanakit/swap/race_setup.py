"""What every arm of a race shares: data, target, options, teacher, store, and how an arm is evaluated."""

import time
from dataclasses import dataclass

import numpy as np

from sanakit.data.dataset import LatentDataset
from sanakit.evaluation.held_out import HeldOut, averaged, held_out
from sanakit.swap.arm import Arm
from sanakit.swap.distill import Teacher
from sanakit.swap.ending import Question, TimeLimit
from sanakit.swap.quality import Target
from sanakit.swap.race_store import RaceStore
from sanakit.training.batches import TrainOptions


@dataclass(frozen=True, kw_only=True)
class RaceSetup:
    """What every arm of a race shares.

    count: held-out images used for evaluation, those of the target. options: the training section; steps and learning
    rate are each arm's own, OWN_OPTIONS the race's. layer_decay: as of `layer_groups`. store: where arms are kept, None
    for nowhere. kind, horizon: of the `Question`. limit: of time, None for none.
    """

    data: LatentDataset
    test: LatentDataset
    target: Target
    count: int
    options: TrainOptions
    layer_decay: float = 1.0
    teacher: Teacher | None = None  # of strategies that learn from the base
    store: RaceStore | None = None
    kind: str = "vae"
    horizon: int = 2000
    limit: TimeLimit | None = None

    @property
    def question(self) -> Question:
        return Question(target=self.target, kind=self.kind, horizon=self.horizon, seed=self.options.seed)

    def evaluate(self, arm: Arm) -> None:
        """Add a point to the arm's curve; an arm whose errors are not finite has diverged."""
        step, result, errors = self._measured(arm)
        if not np.isfinite(errors).all():
            arm.diverged = f"held-out loss {result.loss} after step {step}"
            return
        arm.steps.append(step)
        arm.results.append(result)
        arm.errors_by_evaluation.append(errors)
        arm.seconds_at[step] = arm.seconds

    def evaluate_beside(self, arm: Arm) -> None:
        """Add a point that no decision of the race reads."""
        step, result, errors = self._measured(arm)
        arm.extra_steps.append(step)
        arm.extra_losses.append(result.loss)
        arm.extra_errors.append(errors)

    def _measured(self, arm: Arm) -> tuple[int, HeldOut, np.ndarray]:
        begun = time.perf_counter()
        with averaged(arm.system.core, arm.average):
            result = held_out(arm.system, self.test, count=self.count)
        arm.evaluation_seconds = time.perf_counter() - begun
        return arm.state.step if arm.state else 0, result, self.target.relative(result)
