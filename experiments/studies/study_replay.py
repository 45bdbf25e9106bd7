"""The decision study's races, replayed: what the race of the first steps would have said,
and what became of every strategy.

The replay calls the functions that decide a race (sanakit/swap/ending.py), with the curves of the study instead of arms
that train; of an arm that leaves the race they see what it had shown by then. Controls do not race. Truth: the cheapest
strategy that reaches the target, cost = steps x the strategy's step time, measured side by side, and what distillation
spends on the base's trajectories before its first step. An arrival beyond the horizon is none: the race's probability
is of arriving within it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from study_curves import StudyArm, StudyRecord, from_row

from sanakit.strategies.base import STRATEGIES
from sanakit.swap.arm import Arm
from sanakit.swap.ending import STEPS, TOLD, Question, RaceResult, conclude
from sanakit.swap.forecast import CHEAPEST, Draws
from sanakit.swap.race import go_on
from sanakit.swap.rungs import Rungs, auto_rungs, fixed_rungs
from sanakit.swap.settings import EMBEDDED_HORIZON
from sanakit.swap.slope_law import Curve, SlopeLaw, draw_arrivals, measured_arrival, packaged_law

MAX_STEPS = 400
AUTO = auto_rungs(MAX_STEPS)
HORIZON = EMBEDDED_HORIZON


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one race said. arms: by name. spent: its cost in steps of the slowest arm, the search of rates with it."""

    result: RaceResult
    arms: dict[str, Arm]
    spent: float
    right: bool


def race_of(record: StudyRecord) -> list[StudyArm]:
    """The arms that race: no controls."""
    return [arm for name, arm in record.arms.items() if not STRATEGIES.get(name.partition("@")[0]).control]


def replayed_arm(name: str, arm: StudyArm) -> Arm:
    """An arm of the race that has been run already. A step costs what it costs beside the slowest; errors per image."""
    plain = STRATEGIES.get(name.partition("@")[0])
    strategy = type(plain.__name__, (plain,), {"name": name})
    steps = [int(step) for step in arm.curve.steps]
    options: Any = SimpleNamespace(learning_rate=arm.curve.rate * plain.learning_rate)
    unused: Any = None
    state: Any = SimpleNamespace(skipped=[]) if arm.trained or arm.diverged else None
    return Arm(
        strategy=strategy,
        system=unused,
        options=options,
        state=state,
        steps=steps,
        errors_by_evaluation=list(arm.errors),
        seconds=arm.step_cost * steps[-1],
        seconds_at={step: arm.step_cost * step for step in steps},
        seconds_once=arm.once,
        trained_parameters=arm.parameters,
        diverged=arm.diverged,
    )


def question_of(record: StudyRecord, law: SlopeLaw) -> Question:
    target: Any = SimpleNamespace(tolerance=record.tolerance, base=record.base_errors)
    return Question(target=target, kind=record.kind, horizon=HORIZON, seed=0, law=law)


def replay(record: StudyRecord, law: SlopeLaw, plan: Rungs = AUTO) -> Said:
    """What the race over these rungs would have said."""
    question = question_of(record, law)
    arms = {arm.curve.name: replayed_arm(arm.curve.name, arm) for arm in race_of(record)}
    running = [arm for arm in arms.values() if arm.state]
    for arm in running:
        keep_rungs(arm, plan)
    swept = {name: plan.rates_at if record.arms[name].rates > 1 else 0 for name in arms}
    upto = dict(swept)
    ended, stopped_by = 0, STEPS
    for rung in plan.steps:
        if not any(rung in arm.steps for arm in running):
            continue  # all that are left diverged before
        for arm in running:
            upto[arm.strategy.name] = max(rung, swept[arm.strategy.name])
        entered, running, ended = running, go_on(question, running, rung, plan), rung
        for arm in entered:
            if arm not in running:
                forget(arm, upto[arm.strategy.name])
        if len(plan.ends) > 1 and rung in plan.ends:
            answer, _ = conclude(question, list(arms.values()), running, plan, rung)
            if answer.told:
                stopped_by = TOLD
                break
    answer, best = conclude(question, list(arms.values()), running, plan, ended)
    result = RaceResult(finalists=running, best=best, answer=answer, step=ended, stopped_by=stopped_by)
    spent = sum(
        record.arms[name].step_cost * (steps + (record.arms[name].rates - 1) * plan.rates_at) + record.arms[name].once
        for name, steps in upto.items()
        if arms[name].state
    )
    named = answer.name if answer.in_sight else ""
    return Said(result=result, arms=arms, spent=spent, right=is_right(record, named))


def keep_rungs(arm: Arm, plan: Rungs) -> None:
    """What the race evaluates, of what the study did. A run of the study that ended at the target before a rung is
    taken to be at its last error there."""
    for rung in plan.steps:
        if arm.steps[-1] < rung and not arm.diverged:
            arm.seconds = arm.seconds_at[rung] = arm.seconds_per_step * rung
            arm.steps.append(rung)
            arm.errors_by_evaluation.append(arm.errors_by_evaluation[-1])
    kept = [i for i, step in enumerate(arm.steps) if not step or step in plan.steps]
    arm.steps = [arm.steps[i] for i in kept]
    arm.errors_by_evaluation = [arm.errors_by_evaluation[i] for i in kept]
    arm.seconds = arm.seconds_at[arm.steps[-1]]


def forget(arm: Arm, last: int) -> None:
    """An arm that does not go on from a rung has shown the race nothing after step `last`; the study ran it on."""
    known = sum(step <= last for step in arm.steps)
    del arm.steps[known:], arm.errors_by_evaluation[known:]
    arm.seconds = arm.seconds_at[arm.steps[-1]]


def draws_at(record: StudyRecord, law: SlopeLaw, names: Sequence[str], end: int) -> Draws:
    """Joint draws of strategies as a race that ends at `end` sees them, whether it had dropped them or not. A curve
    that ends before, or was not evaluated there, is left out."""
    curves = []
    for name in names:
        curve = record.arms[name].curve
        if end in curve.steps:
            seen = (curve.steps <= end) & np.isin(curve.steps, [0, *AUTO.steps])
            curves.append(
                Curve(name=name, scope=curve.scope, rate=curve.rate, steps=curve.steps[seen], errors=curve.errors[seen])
            )
    return draw_arrivals(law, curves, record.level, record.kind)


def arrivals(record: StudyRecord) -> dict[str, float | None]:
    """Steps that each arm of the race needed, None where it did not arrive as far as it was run."""
    return {
        arm.curve.name: measured_arrival(arm.curve.steps, arm.curve.errors, record.level)
        for arm in record.arms.values()
    }


def costs(record: StudyRecord) -> dict[str, float]:
    """Of every arm of the race that arrived within the horizon, as far as the race is asked, in steps of the
    slowest."""
    needed = arrivals(record)
    names = [arm.curve.name for arm in race_of(record)]
    known = {name: (needed[name], record.arms[name]) for name in names}
    return {
        name: steps * arm.step_cost + arm.once if steps else 0.0
        for name, (steps, arm) in known.items()
        if steps is not None and steps <= HORIZON
    }


def is_right(record: StudyRecord, named: str) -> bool:
    """Whether the strategy that a race named is one of the cheapest; an empty name is right where none arrived."""
    cost = costs(record)
    if not named or not cost:
        return not named and not cost
    return named in cost and cost[named] + 1 <= CHEAPEST * (min(cost.values()) + 1)


def open_to(record: StudyRecord, named: str) -> list[str]:
    """The strategies that were not run far enough to be sure of `is_right`: had one of them arrived on the next step,
    a right answer would be wrong, or a wrong one right."""
    cost, right = costs(record), is_right(record, named)
    least = {
        arm.curve.name: float(arm.curve.steps[-1]) * arm.step_cost + arm.once
        for arm in race_of(record)
        if arm.trained and arm.curve.name not in cost and arm.curve.steps[-1] < HORIZON
    }
    if not named:
        return list(least) if right else []
    if right:
        return [name for name, value in least.items() if cost[named] + 1 > CHEAPEST * (value + 1)]
    cheapest = min(cost.values(), default=np.inf)
    return [name for name in least if name == named and least[name] + 1 <= CHEAPEST * (cheapest + 1)]


def regret(record: StudyRecord, named: str) -> float | None:
    """Cost of the strategy that was named over the cheapest; None where either did not arrive."""
    cost = costs(record)
    return (cost[named] + 1) / (min(cost.values()) + 1) if named in cost else None


def row_of(record: StudyRecord, said: Said) -> dict[str, Any]:
    """The row of one swap in the results: what became of every strategy, and what the race said."""
    cost, needed, result = costs(record), arrivals(record), said.result
    answer = result.answer
    ratio = regret(record, answer.name) if answer.in_sight else None
    curves = {name: arm.curve for name, arm in record.arms.items()}
    return {
        "kind": record.kind,
        "base": record.base,
        "candidate": record.candidate,
        "seed": record.seed,
        "truth": min(cost, key=cost.__getitem__) if cost else "not reached",
        "recommended": answer.name if answer.in_sight else f"not in sight, {answer.name} is nearest",
        "probability": round(answer.probability, 4),
        "race_steps": result.step,
        "stopped_by": result.stopped_by,
        "conclusive": answer.told,
        "right": said.right,
        "regret": None if ratio is None else round(ratio, 3),
        "steps": {name: None if value is None else round(value) for name, value in needed.items()},
        "run_to": {name: int(curve.steps[-1]) for name, curve in curves.items()},
        "dropped": {name: arm.dropped for name, arm in said.arms.items() if arm.dropped},
        "forecast": {name: arm.forecast.as_dict() for name, arm in said.arms.items() if arm.forecast},
        "curves": {name: [curve.steps.tolist(), curve.errors.round(4).tolist()] for name, curve in curves.items()},
        "step_cost": {name: arm.step_cost for name, arm in record.arms.items()},
        "cost_once": {name: arm.once for name, arm in record.arms.items() if arm.once},
        **record.facts,
    }


def goes_out_of_sight(row: dict[str, Any], budget: int) -> bool:
    """Would the race of `budget` steps say that no strategy is in sight? row: of a run that is not finished."""
    said = replay(from_row(row), packaged_law(), fixed_rungs(budget))
    return not said.result.answer.in_sight
