"""Race strategies under one step budget: the same pictures, captions, dropout and sigmas at every step.

Noise is the same too where latents have the same shape. Every strategy runs its own learning rate under a cosine
to zero over the whole budget, so curves end annealed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sanakit.assembly import LatentDiffusion
from sanakit.data.cache import LatentDataset
from sanakit.evaluate import HeldOut, held_out
from sanakit.swap.base import Strategy
from sanakit.swap.forecast import Forecast, forecast
from sanakit.train import TrainOptions, fit, new_state


@dataclass(kw_only=True)
class Arm:
    """One strategy's course: evaluated steps, held-out results, and the trained core's weights at the end."""

    strategy: type[Strategy]
    steps: list[int] = field(default_factory=list)
    results: list[HeldOut] = field(default_factory=list)
    train_loss: list[tuple[int, float]] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    forecast: Forecast | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    trained_parameters: int = 0
    seconds_per_step: float = 0.0

    def as_dict(self) -> dict[str, object]:
        errors = [float(r.one_step.mean()) for r in self.results if r.one_step is not None]
        return {
            "name": self.strategy.name,
            "title": self.strategy.title,
            **(self.forecast.as_dict() if self.forecast else {}),
            "reached": bool(self.forecast and self.forecast.reached),
            "initial_loss": self.results[0].loss,
            "held_out_loss": self.results[-1].loss,
            "one_step_error": errors[-1],
            "learning_rate": self.strategy.learning_rate,
            "trained_parameters": self.trained_parameters,
            "seconds_per_step": self.seconds_per_step,
            "steps": self.steps,
            "losses": [r.loss for r in self.results],
            "one_step_errors": errors,
            **self.scores,
        }


def run_arm(
    system: LatentDiffusion,
    strategy: type[Strategy],
    data: LatentDataset,
    test: LatentDataset,
    images: Tensor,
    base: HeldOut,
    *,
    budget: int,
    batch_size: int,
    seed: int,
    on_step: Callable[[int], None] = lambda step: None,
) -> Arm:
    """Train `system` in place for `budget` steps by `strategy`; evaluate at 0, 1/8, 1/4, 1/2 and all of it."""
    arm = Arm(strategy=strategy)

    def evaluate(step: int) -> None:
        arm.steps.append(step)
        arm.results.append(held_out(system, test, images=images, count=len(images)))

    evaluate(0)
    groups = strategy.parameter_groups(system.core)
    arm.trained_parameters = sum(p.numel() for group in groups for p in group["params"])
    if groups:
        options = TrainOptions(
            max_steps=budget,
            batch_size=batch_size,
            learning_rate=strategy.learning_rate,
            seed=seed,
            warmup=max(1, min(20, budget // 10)),
        )
        state = new_state(system.core, groups, options)
        losses: list[float] = []

        def after_step(step: int, loss: float, batch: object, predicted: Tensor) -> None:
            losses.append(loss)
            if step % 10 == 0:
                arm.train_loss.append((step, float(np.mean(losses[-10:]))))
            on_step(step)

        spent = 0.0
        for target in sorted({max(1, budget // 8), max(1, budget // 4), max(1, budget // 2), budget}):
            start = time.perf_counter()
            fit(system, data, options, state, until=target, after_step=after_step)
            spent += time.perf_counter() - start
            evaluate(target)
        arm.seconds_per_step = spent / budget
    errors = np.stack([r.one_step.numpy() for r in arm.results if r.one_step is not None])
    assert base.one_step is not None
    arm.forecast = forecast(arm.steps, errors, base.one_step.numpy(), seed=seed)
    arm.weights = {k: v.detach().clone() for k, v in system.core.state_dict().items()}
    return arm


def recommend(arms: list[Arm]) -> Arm:
    """Fewest forecast steps; when no arm is forecast to arrive, the lowest measured one-step error. Ties go to the
    cheaper arm."""
    arrived = [a for a in arms if a.forecast and np.isfinite(a.forecast.steps)]
    if arrived:
        return min(arrived, key=lambda a: (a.forecast.steps, a.trained_parameters))  # type: ignore[union-attr]
    return min(arms, key=lambda a: float(torch.as_tensor(a.results[-1].one_step).mean()))
