"""The decision study's races, replayed: what the race of the first steps would have said,
and what became of every strategy.

Truth: the cheapest strategy that reaches the target of swap/quality.py, cost = steps x the strategy's step time,
measured side by side, and what distillation spends on the base's trajectories before its first step.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
from study_rows import unpacked

from sanakit.swap.forecast import forecast
from sanakit.swap.race import recommend, rungs, survivors

BUDGET = 100
CONTROLS = ("naive", "scratch")
RIGHT = 1.1  # times the cheapest strategy's cost
Curves = dict[str, np.ndarray]


def as_curves(row: dict[str, Any]) -> tuple[dict[str, Any], Curves]:
    """A run of study_rows as `replay` takes it: the record and its curves, of the arms that a race has."""
    curves = {"base": unpacked(row["base_errors"])}
    names = raced(row["arms"])
    for name in names:
        arm = row["arms"][name]
        curves[f"{name}/steps"] = np.asarray(arm["steps"])
        curves[f"{name}/errors"] = unpacked(arm["errors"])
    known = row.get("step_cost", {})
    costs = {name: known.get(name, 1.0 if len(curves[f"{name}/steps"]) > 1 else 0.0) for name in names}
    return row | {"step_cost": costs}, curves


def raced(arms: dict[str, Any]) -> list[str]:
    """No controls; of the arms that differ in their start, those at the start of lower error before any step
    (`train.start auto`)."""
    first = {name: arm["mean"][0] for name, arm in arms.items()}
    blocks = first.get("align-blocks", np.inf) < first.get("align", np.inf)
    chosen = []
    for name in arms:
        plain, _, start = name.partition("@")
        twins = plain in arms and f"{plain}@align-blocks" in arms
        if plain not in CONTROLS and (not twins or bool(start) == blocks):
            chosen.append(name)
    return chosen


def goes_out_of_sight(row: dict[str, Any], budget: int) -> bool:
    """Would the race of `budget` steps say that no strategy is in sight?"""
    record, curves = as_curves(row)
    _, in_sight = recommended(said(record, curves, budget), budget)
    return not in_sight


def said(record: dict[str, Any], curves: Curves, budget: int) -> list[Any]:
    """The arms as the race of `budget` steps left them: steps, error and forecast of each."""
    names, once = list(record["step_cost"]), record.get("cost_once", {})
    steps, errors, mean = arrays(names, curves)
    upto = dict.fromkeys(names, 0)
    running = [name for name in names if len(steps[name]) > 1]
    for rung in rungs(budget):
        upto |= dict.fromkeys(running, rung)
        running.sort(key=lambda name: at(steps[name], mean[name], rung))
        last = [errors[name][steps[name] <= rung][-1] for name in running]
        running = running[: survivors(last, rung, budget)]
    goal = SimpleNamespace(base=curves["base"].astype(float), tolerance=record["tolerance"])
    arms = []
    for name in names:
        seen = np.isin(steps[name], [0, *rungs(budget)]) & (steps[name] <= upto[name])

        def spent(needed: float, name: str = name) -> float:
            return float(needed * record["step_cost"][name] + once.get(name, 0.0)) if needed else 0.0

        arms.append(
            SimpleNamespace(
                name=name,
                steps=steps[name][seen].tolist(),
                forecast=forecast(steps[name][seen].tolist(), errors[name][seen], goal),
                cost=spent,
                trained_parameters=0,
                error=at(steps[name], mean[name], upto[name]),
                diverged="",
            )
        )
    return arms


def recommended(arms: list[Any], budget: int) -> tuple[Any, bool]:
    """The arm that the race recommends, and whether it is forecast to arrive."""
    best = recommend(arms)
    in_sight = bool(np.isfinite(best.forecast.steps)) and (best.forecast.reached or best.steps[-1] == budget)
    return best, in_sight


def replay(record: dict[str, Any], curves: Curves, budget: int = BUDGET) -> dict[str, Any]:
    """The row of one swap: what the race would have said after `budget` steps, and what became of every strategy."""
    names, once = list(record["step_cost"]), record.get("cost_once", {})
    steps, _, mean = arrays(names, curves)
    arms = said(record, curves, budget)
    best, in_sight = recommended(arms, budget)

    tolerance = record["tolerance"]
    costs = {n: cost_to(steps[n], mean[n], tolerance, record["step_cost"][n], once.get(n, 0.0)) for n in names}
    needed = {n: cost_to(steps[n], mean[n], tolerance) for n in names}
    reached = {n: cost for n, cost in costs.items() if cost is not None}
    truth = min(reached, key=reached.__getitem__) if reached else "not reached"
    regret = (reached[best.name] + 1) / (reached[truth] + 1) if reached and in_sight and best.name in reached else None
    ends = {arm.name: arm.steps[-1] for arm in arms}
    return {key: record[key] for key in ("kind", "base", "candidate", "seed")} | {
        "truth": truth,
        "recommended": best.name if in_sight else f"not in sight, {best.name} is nearest",
        "conclusive": best.forecast.conclusive,
        "right": (regret is not None and regret <= RIGHT) if reached else not in_sight,
        "regret": None if regret is None else round(regret, 3),
        "steps": {n: None if v is None else round(v) for n, v in needed.items()},
        "run_to": {n: int(s[-1]) for n, s in steps.items()},
        "forecast": {arm.name: arm.forecast.as_dict() for arm in arms},
        "covered": covered(arms, needed, steps),
        "smoke_errors": {n: round(float(at(steps[n], mean[n], ends[n])), 4) for n in names},
        "final_errors": {n: round(float(m[-1]), 4) for n, m in mean.items()},
        "curves": {n: [steps[n].tolist(), mean[n].round(4).tolist()] for n in names},
        "cost_once": once,
        **{key: record[key] for key in ("rates", "step_cost", "minutes", "command") if key in record},
    }


def covered(arms: list[Any], needed: dict[str, float | None], steps: dict[str, np.ndarray]) -> dict[str, bool]:
    """Of every forecast, not of what was measured or run no further: do its ends hold the steps that were needed? One
    that says "more than n" holds a strategy that was run for n steps without getting there."""
    coverage = {}
    for arm in arms:
        last, actual = float(steps[arm.name][-1]), needed[arm.name]
        if arm.forecast.reached or last <= arm.steps[-1]:
            continue
        low, high = arm.forecast.low, arm.forecast.high
        coverage[arm.name] = bool(low <= actual <= high) if actual is not None else bool(high > last)
    return coverage


def arrays(names: list[str], curves: Curves) -> tuple[dict[str, np.ndarray], ...]:
    """Steps (K), errors (K, N) and mean errors (K) of every arm."""
    errors = {name: curves[f"{name}/errors"].astype(float) for name in names}
    return {name: curves[f"{name}/steps"] for name in names}, errors, {name: errors[name].mean(1) for name in names}


def at(steps: np.ndarray, values: np.ndarray, step: int) -> float:
    """The last value up to a step."""
    return float(values[steps <= step][-1])


def cost_to(
    steps: np.ndarray, curve: np.ndarray, target: float, step_cost: float = 1.0, once: float = 0.0
) -> float | None:
    """Steps x step cost (and what is spent once) until the curve is first at the target, between two evaluations by the
    line through them in log steps; None where it never is."""
    for i, value in enumerate(curve):
        if value <= target:
            needed = reached_at(steps, curve, target, i)
            return float(needed * step_cost + once) if needed else 0.0
    return None


def reached_at(steps: np.ndarray, curve: np.ndarray, target: float, i: int) -> float:
    if i == 0:
        return float(steps[0])
    share = (curve[i - 1] - target) / (curve[i - 1] - curve[i])
    before, after = np.log(steps[i - 1 : i + 1] + 1.0)
    return float(np.exp(before + share * (after - before)) - 1)
