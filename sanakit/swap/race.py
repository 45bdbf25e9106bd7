"""Race strategies by successive halving under one step budget: the same images, captions, dropout and sigmas at
every step, and the same noise where latents have the same shape.

Arms train as the training section of the configuration says (precision, optimiser, accumulation, dropout, sigmas ...),
except for what makes their curves comparable: every strategy keeps a constant learning rate after a warm-up, the best
of a search (rates.py) at half the budget, and is evaluated by the moving average of its weights, so that every
evaluated point stands for a run that could end there, and the points of one curve can be fitted.

After a quarter of the budget the better half of the trained arms goes on, after half of it the better two, and every
arm that is not clearly worse than they are. An arm whose loss is no longer finite leaves the race; the others go on. A
race of automatic length (rungs.py) begins as one of 100 steps and ends when its answer is sure enough (ending.py).

An arm is on the device while it trains or is evaluated, and waits in the host's memory.

A signal ends the race at the step border. With a store (race_store.py) the same race then goes on where it stopped.
"""

import math
import signal
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanakit.assembly import LatentDiffusion
from sanakit.distributed import DATA_STOP, STOP, agreed_stop
from sanakit.errors import SanakitError
from sanakit.strategies.base import Strategy
from sanakit.swap.arm import Arm
from sanakit.swap.ending import (
    STEPS,
    TIME,
    TOLD,
    Question,
    RaceResult,
    conclude,
    has_arrived,
    seconds_needed,
)
from sanakit.swap.race_setup import RaceSetup
from sanakit.swap.rates import RateSearch
from sanakit.swap.rungs import Rungs, evaluated_steps_between, rungs, rungs_of, survivors
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


def raced_options(options: TrainOptions, budget: int | Rungs, learning_rate: float) -> TrainOptions:
    """The training section as a race reads it. budget: its steps, or where it may end."""
    plan = rungs_of(budget)
    warmup = min(options.warmup, max(1, plan.halving // 10))
    raced = {"max_steps": plan.last, "learning_rate": learning_rate, "warmup": warmup}
    return replace(options, **raced | OWN_OPTIONS)


def enter(
    setup: RaceSetup,
    strategy: type[Strategy],
    system: LatentDiffusion,
    *,
    budget: int | Rungs,
    learning_rate: float | None = None,
    alike: Arm | None = None,
) -> Arm:
    """A strategy at its starting line: groups chosen, optimiser made, evaluated at step 0, or with the first result of
    an arm that starts alike; where the setup has a store, as it was kept."""
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
    budget: int | Rungs,
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
        chosen = search.record(rate, _try_rate(setup, arm, search, rungs_of(budget), on_step), arm.diverged)
        loser, best = (best, arm) if chosen or best is None else (arm, best)
        if loser and setup.store:
            setup.store.settle(loser)
    assert best is not None
    best.scores |= search.scores()
    return best


def _try_rate(setup: RaceSetup, arm: Arm, search: RateSearch, plan: Rungs, on_step: Callable[[int], None]) -> float:
    """Error of an arm where rates are evaluated, infinite where it does not get there; 0 where there is nothing to
    choose."""
    if not search.is_choice:
        return 0.0
    evaluated_at, quarter = plan.rates_at, max(1, plan.halving // 4)
    for rung in [rung for rung in rungs(plan.halving) if rung <= evaluated_at]:
        advance(setup, arm, rung, on_step)
        if rung not in arm.steps:
            return float("inf")
        if rung == quarter and search.leaves_early(arm.options.learning_rate, arm.errors_at(rung), rung):
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
        arm.seconds_once = arm.seconds_once or setup.teacher.seconds  # a race that was resumed decides alike
    if arm.state.step == arm.steps[-1]:
        arm.recent = []
    with STOP.at_step_border(), at_work(arm.state):
        _train(setup, arm, until, recorder(arm, on_step), draw)
        if not arm.diverged and not arm.state.stopped:
            setup.evaluate(arm)
        if setup.store:
            (setup.store.settle if arm.diverged else setup.store.save)(arm)
        stop = agreed_stop()
    if stop == DATA_STOP:
        STOP.number = 0
        raise setup.data.failures.refusal(f"the race stopped at step {arm.state.step} of {arm.strategy.name}")
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
    budget: int | Rungs,
    on_step: Callable[[Arm, int], None] = lambda arm, step: None,
) -> RaceResult:
    """Run the arms over the rungs until the race can tell, or its steps or its time are spent.

    budget: a race of exactly so many steps, or where it may end. An arm that diverges leaves the race, one that is
    dropped says why; neither has a forecast. Raises SK0512 where all that train diverged and none that does not is at
    the base's quality, RaceStopped after a signal.
    """
    plan, question = rungs_of(budget), setup.question
    running = [arm for arm in arms if arm.state]  # one that has diverged raced up to there
    ended, stopped_by = 0, STEPS
    for rung in plan.steps:
        needed = seconds_needed(running, rung)
        if needed and setup.limit and not setup.limit.allows(needed):
            stopped_by = TIME
            break
        for arm in running:
            advance(setup, arm, rung, partial(on_step, arm))
        running = go_on(question, running, rung, plan)
        ended = rung
        if len(plan.ends) > 1 and rung in plan.ends and conclude(question, arms, running, plan, rung)[0].told:
            stopped_by = TOLD
            break
    answer, best = conclude(question, arms, running, plan, ended)
    return RaceResult(finalists=running, best=best, answer=answer, step=ended, stopped_by=stopped_by)


def go_on(question: Question, running: Sequence[Arm], rung: int, plan: Rungs) -> list[Arm]:
    """The arms that go on from a rung, best first. The others are dropped, and say why; one that is at the target
    already has nothing left to show."""
    arrived = [arm for arm in running if rung in arm.steps]
    arrived.sort(key=lambda arm: float(arm.errors_at(rung).mean()))
    errors = [arm.errors_at(rung) for arm in arrived]
    keep = survivors(errors, rung, plan.halving)
    for arm, each in list(zip(arrived, errors, strict=True))[keep:]:
        if not has_arrived(arm, question.level, rung):
            last = arrived[keep - 1].strategy.name
            against = f"error {each.mean():.3f} against {errors[keep - 1].mean():.3f}"
            arm.dropped = f"clearly worse than {last} at step {rung} ({against})"
    return arrived[:keep]
