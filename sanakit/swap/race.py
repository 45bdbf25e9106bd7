"""Race strategies by successive halving under one step budget: the same images, captions, dropout and sigmas at
every step, and the same noise where latents have the same shape.

Arms train as the training section of the configuration says (precision, optimiser, accumulation, dropout, sigmas ...),
except for what makes their curves comparable: every strategy keeps a constant learning rate after a warm-up, the best
of a search (rates.py) at half the budget, and is evaluated by the moving average of its weights, so that every
evaluated point stands for a run that could end there, and the points of one curve can be fitted.

After a quarter of the budget the better half of the trained arms goes on, after half of it the better two, and every
arm that is not clearly worse than they are. An arm whose loss is no longer finite leaves the race; the others go on.

An arm is on the device while it trains or is evaluated, and waits in the host's memory.

A signal ends the race at the step border. With a store (race_store.py) the same race then goes on where it stopped.
"""

import math
import signal
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanakit.assembly import LatentDiffusion
from sanakit.data.dataset import LatentDataset
from sanakit.distributed import STOP, agreed_stop
from sanakit.errors import SanakitError
from sanakit.evaluation.held_out import HeldOut, averaged, held_out
from sanakit.strategies.base import Strategy
from sanakit.swap.arm import Arm
from sanakit.swap.distill import Teacher
from sanakit.swap.forecast import forecast
from sanakit.swap.quality import Target
from sanakit.swap.race_store import RaceStore
from sanakit.swap.rates import RateSearch
from sanakit.swap.rungs import decides_at, evaluated_steps_between, rungs, survivors
from sanakit.training.batches import Batch, TrainOptions
from sanakit.training.loop import fit, layer_groups, new_state
from sanakit.training.state import at_work

EMA_DECAY = 0.98
# what a race keeps of its own: points of one curve that can be compared; every rank holds whole arms
OWN_OPTIONS: dict[str, Any] = {"schedule": "constant", "ema_decay": EMA_DECAY, "parallel": "ddp"}
RECENT = 10  # steps whose mean is a point of the training curve


AfterStep = Callable[[int, float, object, Tensor], None]


class RaceStopped(Exception):
    """A signal ended the race at a step border. number: of the signal. name: of what trained."""

    def __init__(self, number: int, step: int, max_steps: int, name: str) -> None:
        self.number = number
        super().__init__(f"{signal.Signals(number).name}: the race stopped at step {step} of {max_steps} of {name}")


@dataclass(frozen=True, kw_only=True)
class RaceSetup:
    """What every arm of a race shares.

    count: held-out images used for evaluation, those of the target. options: the training section; steps and learning
    rate are each arm's own, OWN_OPTIONS the race's. layer_decay: as of `layer_groups`. store: where arms are kept, None
    for nowhere.
    """

    data: LatentDataset
    test: LatentDataset
    target: Target
    count: int
    options: TrainOptions
    layer_decay: float = 1.0
    teacher: Teacher | None = None  # of strategies that learn from the base
    store: RaceStore | None = None

    def evaluate(self, arm: Arm) -> None:
        """Add a point to the arm's curve; an arm whose errors are not finite has diverged."""
        step, result, errors = self._measured(arm)
        if not np.isfinite(errors).all():
            arm.diverged = f"held-out loss {result.loss} after step {step}"
            return
        arm.steps.append(step)
        arm.results.append(result)
        arm.errors_by_evaluation.append(errors)

    def evaluate_beside(self, arm: Arm) -> None:
        """Add a point that no decision of the race reads."""
        step, result, errors = self._measured(arm)
        arm.extra_steps.append(step)
        arm.extra_losses.append(result.loss)
        arm.extra_errors.append(errors)

    def _measured(self, arm: Arm) -> tuple[int, HeldOut, np.ndarray]:
        with averaged(arm.system.core, arm.average):
            result = held_out(arm.system, self.test, count=self.count)
        return arm.state.step if arm.state else 0, result, self.target.relative(result)


def raced_options(options: TrainOptions, budget: int, learning_rate: float) -> TrainOptions:
    """The training section as a race of `budget` steps reads it."""
    warmup = min(options.warmup, max(1, budget // 10))
    return replace(options, max_steps=budget, learning_rate=learning_rate, warmup=warmup, **OWN_OPTIONS)


def enter(
    setup: RaceSetup,
    strategy: type[Strategy],
    system: LatentDiffusion,
    *,
    budget: int,
    learning_rate: float | None = None,
    alike: Arm | None = None,
) -> Arm:
    """A strategy at its starting line: groups chosen, optimiser made, evaluated at step 0, or with the first result of
    an arm that starts alike; where the course has a store, as it was kept."""
    options = raced_options(setup.options, budget, learning_rate or strategy.learning_rate)
    arm = Arm(strategy=strategy, system=system, options=options)
    with torch.random.fork_rng():  # low-rank adapters are drawn
        torch.manual_seed(options.seed)
        groups = strategy.parameter_groups(system.core)
    arm.trained_parameters = sum(p.numel() for group in groups for p in group["params"])
    if groups:
        layers = layer_groups(system.core, groups, setup.layer_decay)
        arm.state = new_state(system.core, layers, options, placement=system.placement)
    with at_work(arm.state):
        if arm.state and setup.store and setup.store.restore(arm):
            return arm
        if alike is None:
            setup.evaluate(arm)
    if alike is not None:
        arm.steps, arm.results, arm.errors_by_evaluation = (
            alike.steps[:1],
            alike.results[:1],
            alike.errors_by_evaluation[:1],
        )
        arm.diverged = "" if alike.results else alike.diverged
    return arm


def at_best_rate(
    setup: RaceSetup,
    strategy: type[Strategy],
    start: LatentDiffusion,
    *,
    budget: int,
    rates: Sequence[float] = (1.0,),
    search: RateSearch | None = None,
    alike: Arm | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Arm:
    """The strategy at the learning rate that is best after half the budget, of those that `search` hands out, by
    default its own times each of `rates`.

    start is copied. scores["rates"] holds the error of every rate there, None where it left before, and
    scores["rates_left"] why. Raises RaceStopped.
    """
    search = search or RateSearch(rates=[factor * strategy.learning_rate for factor in rates])
    best: Arm | None = None
    while (rate := search.next_rate()) is not None:
        system = replace(start, core=deepcopy(start.core))
        arm = enter(setup, strategy, system, budget=budget, learning_rate=rate, alike=best or alike)
        if arm.state is None:
            arm.scores |= {"rates": {}, "rates_left": {}}
            return arm
        chosen = search.record(rate, _try_rate(setup, arm, search, budget, on_step), arm.diverged)
        loser, best = (best, arm) if chosen or best is None else (arm, best)
        if loser and setup.store:
            setup.store.settle(loser)
    assert best is not None
    best.scores |= search.scores()
    return best


def _try_rate(setup: RaceSetup, arm: Arm, search: RateSearch, budget: int, on_step: Callable[[int], None]) -> float:
    """Error of an arm where rates are evaluated, infinite where it does not get there;
    0 where there is nothing to choose."""
    if not search.is_choice:
        return 0.0
    evaluated_at = decides_at(budget)
    for rung in [rung for rung in rungs(budget) if rung <= evaluated_at]:
        advance(setup, arm, rung, on_step)
        if rung not in arm.steps:
            return float("inf")
        if rung == max(1, budget // 4) and search.leaves_early(arm.options.learning_rate, arm.errors_at(rung), rung):
            return float("inf")
    return float(arm.errors_at(evaluated_at).mean())


def advance(setup: RaceSetup, arm: Arm, until: int, on_step: Callable[[int], None] = lambda step: None) -> None:
    """Train an arm to step `until`, evaluate and keep it; one that trains nothing, has diverged or is further stays.

    Raises RaceStopped at the step border after a signal, when what was measured is kept.
    """
    if arm.state is None or arm.diverged or arm.steps[-1] >= until:
        return
    draw = None
    if arm.strategy.teacher:
        if setup.teacher is None:
            raise SanakitError("SK0110", f"strategy {arm.strategy.name} needs the base as a teacher, the race has none")
        draw = setup.teacher.draws(arm.system, setup.data, arm.options)
        arm.seconds_once = setup.teacher.seconds
    if arm.state.step == arm.steps[-1]:
        arm.recent = []
    with STOP.at_step_border(), at_work(arm.state):
        _train(setup, arm, until, recorder(arm, on_step), draw)
        if not arm.diverged and not arm.state.stopped:
            setup.evaluate(arm)
        if setup.store:
            (setup.store.settle if arm.diverged else setup.store.save)(arm)
        stop = agreed_stop()
    if stop:
        raise RaceStopped(stop, arm.state.step, arm.options.max_steps, arm.strategy.name)


def _train(
    setup: RaceSetup, arm: Arm, until: int, after_step: AfterStep, draw: Callable[[int, slice], Batch] | None
) -> None:
    """Train to a step or a signal; evaluate at the EVALUATED_STEPS on the way.
    A loss that is not finite is taken down in the arm."""
    assert arm.state is not None
    for stop in [*evaluated_steps_between(arm.steps[-1], until), until]:
        start = time.perf_counter()
        try:
            fit(arm.system, setup.data, arm.options, arm.state, until=stop, after_step=after_step, draw=draw)
        except SanakitError as error:
            if error.code != "SK0501":
                raise
            arm.diverged = error.found
        arm.seconds += time.perf_counter() - start
        if arm.diverged or arm.state.stopped:
            return
        if stop < until and stop not in arm.extra_steps:
            setup.evaluate_beside(arm)


def recorder(arm: Arm, on_step: Callable[[int], None]) -> AfterStep:
    """What the loop calls after a step of an arm: a point of the training curve every RECENT steps."""

    def after_step(step: int, loss: float, batch: object, predicted: Tensor) -> None:
        if math.isfinite(loss):  # not of a step that train.max_skipped lets be left out
            arm.recent = [*arm.recent, loss][-RECENT:]
        if step % RECENT == 0 and arm.recent:
            arm.train_loss.append((step, float(np.mean(arm.recent))))
        on_step(step)

    return after_step


def race(
    setup: RaceSetup,
    arms: Sequence[Arm],
    *,
    budget: int,
    on_step: Callable[[Arm, int], None] = lambda arm, step: None,
) -> list[Arm]:
    """Run the arms over the rungs and forecast each; returns those that ran to the end.

    An arm that diverges leaves the race and has no forecast. Raises SK0512 where all that train diverged and none that
    does not is at the base's quality, RaceStopped after a signal.
    """
    running = [arm for arm in arms if arm.state and not arm.diverged]
    for rung in rungs(budget):
        for arm in running:
            advance(setup, arm, rung, partial(on_step, arm))
        running = [arm for arm in running if rung in arm.steps]
        running.sort(key=lambda arm: float(arm.errors_at(rung).mean()))
        running = running[: survivors([arm.errors_at(rung) for arm in running], rung, budget)]
    for arm in standing(arms):
        arm.forecast = forecast(arm.steps, arm.errors, setup.target, seed=setup.options.seed)
    trained = [arm for arm in arms if arm.state or arm.diverged]
    lost = trained and all(arm.diverged for arm in trained)
    if lost and not any(arm.forecast and arm.forecast.reached for arm in arms):
        told = "; ".join(f"{arm.strategy.name} at {arm.options.learning_rate:g}: {arm.diverged}" for arm in trained)
        raise SanakitError("SK0512", told)
    return running


def standing(arms: Sequence[Arm]) -> list[Arm]:
    """The arms that did not diverge."""
    return [arm for arm in arms if not arm.diverged]


def recommend(arms: Sequence[Arm]) -> Arm:
    """The cheapest forecast run (`cost` of its steps) among those that arrived or ran to the race's end; when none of
    them is forecast to arrive, the lowest measured error. Ties go to the arm that trains fewer parameters; an arm that
    diverged is never recommended."""
    arms = standing(arms)
    end = max(a.steps[-1] for a in arms)
    judged = [a for a in arms if a.forecast and (a.forecast.reached or a.steps[-1] == end)]
    arrived = [a for a in judged if a.forecast and np.isfinite(a.forecast.steps)]
    if arrived:
        return min(arrived, key=lambda a: (a.cost(a.forecast.steps), a.trained_parameters))  # type: ignore[union-attr]
    return min(arms, key=lambda a: a.error)
