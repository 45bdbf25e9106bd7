"""One strategy in a race: its system, its optimiser, and what was measured of it."""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from sanakit.assembly import LatentDiffusion
from sanakit.evaluation.held_out import HeldOut
from sanakit.strategies.base import Strategy
from sanakit.swap.forecast import NOTHING, Forecast
from sanakit.swap.slope_law import Curve
from sanakit.training.batches import TrainOptions
from sanakit.training.loop import TrainState


@dataclass(kw_only=True, eq=False)
class Arm:
    """One strategy's course in the race: evaluated steps, held-out results, forecast.

    raced: False for a control that was evaluated before any step and not trained. extra_steps, extra_losses,
    extra_errors: evaluations between the rungs, for the study of forecasts; no decision reads them. seconds_at:
    training seconds up to an evaluated step, which a decision there reads, so that a race that was resumed decides
    alike. dropped: why it did not run to the race's end, empty where it did. recent: training losses since the last
    evaluation, at most RECENT. diverged: why it left the race, empty where it did not; what was evaluated before stays.
    """

    strategy: type[Strategy]
    system: LatentDiffusion
    options: TrainOptions
    raced: bool = True
    scores: dict[str, object] = field(default_factory=dict)
    state: TrainState | None = None  # None: nothing is trained
    steps: list[int] = field(default_factory=list)
    results: list[HeldOut] = field(default_factory=list)
    errors_by_evaluation: list[np.ndarray] = field(default_factory=list)
    extra_steps: list[int] = field(default_factory=list)
    extra_losses: list[float] = field(default_factory=list)
    extra_errors: list[np.ndarray] = field(default_factory=list)  # (N,) each
    train_loss: list[tuple[int, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    diverged: str = ""
    dropped: str = ""
    forecast: Forecast | None = None
    trained_parameters: int = 0
    seconds: float = 0.0
    seconds_at: dict[int, float] = field(default_factory=dict)
    evaluation_seconds: float = 0.0  # of its last evaluation
    seconds_once: float = 0.0  # before the first step: the teacher's trajectories

    @property
    def errors(self) -> np.ndarray:
        """Relative error (1 = the base's) of every held-out image at every evaluated step. (K, N)"""
        return np.stack(self.errors_by_evaluation)

    def errors_at(self, step: int) -> np.ndarray:
        """Relative errors at the last evaluation up to a step: an arm that was restored may be further. (N,)"""
        return self.errors_by_evaluation[max(i for i, s in enumerate(self.steps) if s <= step)]

    @property
    def error(self) -> float:
        return float(self.errors[-1].mean())

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / self.steps[-1] if self.steps and self.steps[-1] else 0.0

    def seconds_per_step_at(self, step: int) -> float:
        """As it was measured up to a step."""
        last = max((s for s in self.steps if s <= step), default=0)
        return self.seconds_at.get(last, self.seconds_per_step * last) / last if last else 0.0

    def curve_at(self, step: int, evaluated: Collection[int]) -> Curve:
        """Its curve up to a step as the forecast reads it, of the evaluated steps alone."""
        rows = [i for i, s in enumerate(self.steps) if s <= step and (s == 0 or s in evaluated)]
        return Curve(
            name=self.strategy.name,
            scope=self.strategy.scope(),
            rate=self.options.learning_rate / self.strategy.learning_rate,
            steps=np.array([self.steps[i] for i in rows], float),
            errors=np.array([self.errors_by_evaluation[i].mean() for i in rows], float),
        )

    def cost(self, steps: float) -> float:
        """Seconds of a run of so many steps on this machine; what starts at the target costs nothing."""
        return self.seconds_once + steps * self.seconds_per_step if steps else 0.0

    @property
    def average(self) -> dict[str, Tensor] | None:
        return self.state.ema if self.state else None

    def as_dict(self) -> dict[str, object]:
        predicted = self.forecast.as_dict() if self.forecast else NOTHING
        hours = {
            key.replace("steps", "hours"): None if value is None else self.cost(value) / 3600
            for key, value in predicted.items()
            if "steps" in key
        }
        return {
            "name": self.strategy.name,
            "title": self.strategy.title,
            **predicted,
            **hours,
            "reached": bool(self.forecast and self.forecast.reached),
            "raced": self.raced,
            "diverged": self.diverged or None,
            "dropped": self.dropped or None,
            "skipped_steps": self.state.skipped if self.state else [],
            "initial_loss": self.results[0].loss if self.results else None,
            "held_out_loss": self.results[-1].loss if self.results else None,
            "relative_error": self.error if self.results else None,
            "learning_rate": self.options.learning_rate if self.raced else None,
            "trained_parameters": self.trained_parameters,
            "seconds_per_step": self.seconds_per_step,
            "seconds_once": self.seconds_once,
            "steps": self.steps,
            "losses": [r.loss for r in self.results],
            "relative_errors": [float(errors.mean()) for errors in self.errors_by_evaluation],
            "extra_evaluations": {
                "steps": self.extra_steps,
                "losses": self.extra_losses,
                "relative_errors": [float(errors.mean()) for errors in self.extra_errors],
            },
            "train_losses": [list(point) for point in self.train_loss],
            **self.scores,
        }
