"""What the swap costs: steps and hours of the recommended strategy, device-hours, memory and disk."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

Row = Mapping[str, Any]
HOUR = 3600.0
INTERVAL = 0.9  # of the forecast's ends where strategy.json does not state it
CHECKPOINTS = 4  # on disk at the same time: two, one that is being written, and the one where the decay begins


def cost_of(
    stages: Row,
    strategy: Row,
    plan: Row,
    rows: list[Row],
    *,
    trained_steps: int | None,
    seconds_per_step: float | None,
    averaged: bool = False,
) -> dict[str, Any]:
    """Numbers that are not known are None. trained_steps: of a stage full that is done. seconds_per_step: of another
    machine, stated by the user. averaged: stage full keeps an average of the weights."""
    best = recommended(strategy)
    measured = best.get("seconds_per_step")
    steps = {end: best.get(f"predicted_steps{end}") for end in ("", "_low", "_high")}
    if trained_steps is not None and best.get("trained_parameters") == 0:
        trained_steps = 0  # the recommended strategy trains nothing
    once = (best.get("seconds_once") or 0.0) if steps[""] else 0.0
    cost: dict[str, Any] = {
        "strategy": strategy.get("recommended"),
        "steps": steps[""],
        "steps_low": steps["_low"],
        "steps_high": steps["_high"],
        "interval": strategy.get("interval", INTERVAL) if steps["_low"] is not None else None,
        "trained_steps": trained_steps,
        "seconds_per_step": measured,
        "seconds_spent": sum(stage.get("seconds") or 0.0 for stage in stages.values()),
        "stated_seconds_per_step": seconds_per_step,
    }
    for end, count in steps.items():
        cost[f"hours{end}"] = _hours(count, measured, once)
        cost[f"device_hours{end}"] = _hours(count, seconds_per_step, 0.0)
    return cost | {
        "memory_mb": max(_peaks(stages, rows), default=None),
        "disk_mb": _disk(plan, best.get("trained_parameters"), averaged),
    }


def recommended(strategy: Row) -> Row:
    """The recommended strategy's own record; empty where no race was run."""
    name = strategy.get("recommended")
    return next((row for row in strategy.get("candidates") or [] if name and row["name"] == name), {})


def _hours(steps: Any, seconds: Any, once: float) -> float | None:
    if not all(isinstance(value, int | float) and isfinite(value) for value in (steps, seconds)):
        return None
    return float((steps * seconds + once) / HOUR)


def _peaks(stages: Row, rows: list[Row]) -> list[float]:
    """Peak memory of the process: of every stage that recorded it, and of stage component's own table."""
    peaks = [stage["peak_mb"] for stage in stages.values() if stage.get("peak_mb")]
    return peaks + [row["candidate"] for row in rows if row["metric"] == "peak memory of the process"]


def _disk(plan: Row, trained: Any, averaged: bool) -> float | None:
    """Megabytes of the checkpoints of stage full: weights, their average where one is kept, and two moments of every
    trained parameter, in fp32."""
    weights = sum(group.get("parameters") or 0 for group in plan.get("groups") or [])
    if not weights or trained is None:
        return None
    return CHECKPOINTS * (4 * (1 + averaged) * weights + 8 * trained) / 1e6
