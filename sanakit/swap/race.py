"""Race strategies by successive halving under one step budget: the same pictures, captions, dropout and sigmas at
every step, and the same noise where latents have the same shape.

Every strategy keeps a constant learning rate after a warm-up, the best of a small sweep (a quarter of the budget), and
is judged by the moving average of its weights, so that every evaluated point stands for a run that could end there, and the points of one curve can be fitted.
After a quarter of the budget the better half of the trained arms goes on, after half of it the better two, and whoever
is not clearly worse than they are.
"""

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from sanakit.assembly import LatentDiffusion
from sanakit.data.dataset import LatentDataset
from sanakit.errors import SanakitError
from sanakit.evaluate import HeldOut, averaged, held_out
from sanakit.swap.base import Strategy
from sanakit.swap.distill import Teacher
from sanakit.swap.forecast import Forecast, forecast
from sanakit.swap.quality import Target
from sanakit.train import TrainOptions, TrainState, fit, new_state

EMA_DECAY = 0.98
KEEP_AT_LEAST = 2


@dataclass(kw_only=True)
class Arm:
    """One strategy's course in the race: evaluated steps, held-out results, forecast."""

    strategy: type[Strategy]
    system: LatentDiffusion
    options: TrainOptions
    scores: dict[str, object] = field(default_factory=dict)
    state: TrainState | None = None  # None: nothing is trained
    steps: list[int] = field(default_factory=list)
    results: list[HeldOut] = field(default_factory=list)
    errors_by_look: list[np.ndarray] = field(default_factory=list)
    train_loss: list[tuple[int, float]] = field(default_factory=list)
    forecast: Forecast | None = None
    trained_parameters: int = 0
    seconds: float = 0.0
    seconds_once: float = 0.0  # before the first step: the teacher's trajectories

    @property
    def errors(self) -> np.ndarray:
        """Relative error (1 = the base's) of every held-out picture at every evaluated step. (K, N)"""
        return np.stack(self.errors_by_look)

    @property
    def error(self) -> float:
        return float(self.errors[-1].mean())

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / self.steps[-1] if self.steps[-1] else 0.0

    def cost(self, steps: float) -> float:
        """Seconds of a run of so many steps on this machine; what starts at the target costs nothing."""
        return self.seconds_once + steps * self.seconds_per_step if steps else 0.0

    @property
    def average(self) -> dict[str, Tensor] | None:
        return self.state.ema if self.state else None

    def as_dict(self) -> dict[str, object]:
        predicted = self.forecast.as_dict() if self.forecast else {}
        hours = {
            key.replace("steps", "hours"): None if value is None else self.cost(value) / 3600
            for key, value in predicted.items()
        }
        return {
            "name": self.strategy.name,
            "title": self.strategy.title,
            **predicted,
            **hours,
            "reached": bool(self.forecast and self.forecast.reached),
            "initial_loss": self.results[0].loss,
            "held_out_loss": self.results[-1].loss,
            "relative_error": self.error,
            "learning_rate": self.options.learning_rate,
            "trained_parameters": self.trained_parameters,
            "seconds_per_step": self.seconds_per_step,
            "seconds_once": self.seconds_once,
            "steps": self.steps,
            "losses": [r.loss for r in self.results],
            "relative_errors": self.errors.mean(1).tolist(),
            **self.scores,
        }


@dataclass(frozen=True, kw_only=True)
class Course:
    """What every arm of a race shares. count: held-out pictures that judge, those of the target."""

    data: LatentDataset
    test: LatentDataset
    target: Target
    count: int
    batch_size: int = 32
    seed: int = 0
    teacher: Teacher | None = None  # of strategies that learn from the base

    def evaluate(self, arm: Arm) -> None:
        with averaged(arm.system.core, arm.average):
            result = held_out(arm.system, self.test, count=self.count)
        arm.steps.append(arm.state.step if arm.state else 0)
        arm.results.append(result)
        arm.errors_by_look.append(self.target.relative(result))


def enter(
    course: Course,
    strategy: type[Strategy],
    system: LatentDiffusion,
    *,
    budget: int,
    learning_rate: float | None = None,
    alike: Arm | None = None,
) -> Arm:
    """A strategy at its starting line: groups chosen, optimiser made, evaluated at step 0, or with the first result of
    an arm that starts alike."""
    options = TrainOptions(
        max_steps=budget,
        batch_size=course.batch_size,
        learning_rate=learning_rate or strategy.learning_rate,
        decay=False,
        ema_decay=EMA_DECAY,
        seed=course.seed,
        warmup=max(1, min(20, budget // 10)),
    )
    arm = Arm(strategy=strategy, system=system, options=options)
    groups = strategy.parameter_groups(system.core)
    arm.trained_parameters = sum(p.numel() for group in groups for p in group["params"])
    if groups:
        arm.state = new_state(system.core, groups, options)
    if alike is None:
        course.evaluate(arm)
    else:
        arm.steps, arm.results, arm.errors_by_look = [0], alike.results[:1], alike.errors_by_look[:1]
    return arm


def at_best_rate(
    course: Course,
    strategy: type[Strategy],
    start: LatentDiffusion,
    *,
    budget: int,
    rates: Sequence[float],
    alike: Arm | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Arm:
    """The strategy at the learning rate, its own times one of `rates`, that is best after a quarter of the budget.

    start is copied. scores["rates"] holds the error of every rate there.
    """
    tries: list[Arm] = []
    for factor in rates if strategy.scales else (1.0,):
        system = replace(start, core=deepcopy(start.core))
        rate = factor * strategy.learning_rate
        arm = enter(course, strategy, system, budget=budget, learning_rate=rate, alike=tries[0] if tries else alike)
        if len(rates) > 1:
            for rung in rungs(budget)[:2]:
                advance(course, arm, rung, on_step)
        tries.append(arm)
    best = min(tries, key=lambda arm: arm.error)
    best.scores["rates"] = {f"{arm.options.learning_rate:g}": round(arm.error, 4) for arm in tries if arm.state}
    return best


def advance(course: Course, arm: Arm, until: int, on_step: Callable[[int], None] = lambda step: None) -> None:
    """Train an arm to step `until` and evaluate it; an arm that trains nothing stays where it is."""
    if arm.state is None or arm.state.step >= until:
        return
    losses: list[float] = []

    def after_step(step: int, loss: float, batch: object, predicted: Tensor) -> None:
        losses.append(loss)
        if step % 10 == 0:
            arm.train_loss.append((step, float(np.mean(losses[-10:]))))
        on_step(step)

    draw = None
    if arm.strategy.teacher:
        if course.teacher is None:
            raise SanakitError("SK0110", f"strategy {arm.strategy.name} needs the base as a teacher, the race has none")
        draw = course.teacher.draws(arm.system, course.data, arm.options)
        arm.seconds_once = course.teacher.seconds
    start = time.perf_counter()
    fit(arm.system, course.data, arm.options, arm.state, until=until, after_step=after_step, draw=draw)
    arm.seconds += time.perf_counter() - start
    course.evaluate(arm)


def rungs(budget: int) -> list[int]:
    """Where arms are evaluated: 1/8, 1/4, 1/2 and all of the budget."""
    return sorted({max(1, budget // 8), max(1, budget // 4), max(1, budget // 2), budget})


def survivors(errors: Sequence[np.ndarray], rung: int, budget: int) -> int:
    """How many of the arms that reached a rung go on; errors: (N,) of every arm, best first. Nobody is dropped for noise:
    who is not clearly worse than the last survivor, picture by picture, goes on too."""
    running = len(errors)
    if rung == max(1, budget // 4):
        keep = max(KEEP_AT_LEAST, math.ceil(running / 2))
    elif rung == max(1, budget // 2):
        keep = KEEP_AT_LEAST
    else:
        return running
    while keep < running:
        behind = errors[keep] - errors[keep - 1]
        if behind.mean() > 2 * behind.std() / len(behind) ** 0.5:
            break
        keep += 1
    return min(keep, running)


def race(
    course: Course,
    arms: Sequence[Arm],
    *,
    budget: int,
    on_step: Callable[[Arm, int], None] = lambda arm, step: None,
) -> list[Arm]:
    """Run the arms over the rungs and forecast each; returns those that ran to the end."""
    running = [arm for arm in arms if arm.state]
    for rung in rungs(budget):
        for arm in running:
            advance(course, arm, rung, lambda step, arm=arm: on_step(arm, step))
        running.sort(key=lambda arm: arm.error)
        running = running[: survivors([arm.errors[-1] for arm in running], rung, budget)]
    for arm in arms:
        arm.forecast = forecast(arm.steps, arm.errors, course.target, seed=course.seed)
    return running


def recommend(arms: Sequence[Arm]) -> Arm:
    """The cheapest forecast run (`cost` of its steps) among those that arrived or ran to the race's end; when none of
    them is forecast to arrive, the lowest measured error. Ties go to the arm that trains fewer parameters."""
    end = max(a.steps[-1] for a in arms)
    judged = [a for a in arms if a.forecast and (a.forecast.reached or a.steps[-1] == end)]
    arrived = [a for a in judged if a.forecast and np.isfinite(a.forecast.steps)]
    if arrived:
        return min(arrived, key=lambda a: (a.cost(a.forecast.steps), a.trained_parameters))  # type: ignore[union-attr]
    return min(arms, key=lambda a: a.error)
