"""The law behind a forecast: how fast a strategy's error falls after the race, learnt from the decision study's curves.

The excess of the relative error over a floor falls as a power of steps: log(e - floor) falls by `slope` per unit of
log(step + OFFSET). What a short race shows of one curve predicts the slope that follows by a ridge regression pooled
over all curves of the study; what it does not show has a Student t distribution whose scale was fitted to the
regression's errors on swaps that it had not seen. Arms of one race err together. docs/forecast.md states the model, its
priors and its limits.

The constants are in forecast.json beside this module; `experiments/studies/decision_study.py summary` writes it. Only
numpy is imported here.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("forecast.json")
OFFSET = 10.0  # steps added before the logarithm: the first steps of a warm-up count less
NEAREST = 0.005  # excess below which the logarithm is cut off
STEEPEST = 0.02  # excess below which noise is no longer magnified
DRAWS = 4000
TAIL = 5  # degrees of freedom of the t distribution
FARTHEST = 30.0  # logarithm of steps beyond which a draw counts as "never"
RATES = (-2.0, 1.0)  # logarithm to the base 2 of the learning rates tried in the study, over the strategy's own
SCOPES = ("interface", "lora", "cross-attention", "teacher", "core", "naive", "scratch")
FRESH = ("naive", "scratch")  # controls that start from fresh layers have a law of their own


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One arm as the law reads it. scope: of SCOPES, what it trains. rate: its learning rate over the strategy's own.
    steps, errors: (K,) evaluated steps, the first before any training, and mean relative errors."""

    name: str
    scope: str
    rate: float
    steps: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SlopeLaw:
    """floors: by kind of swap ("vae", "text_encoder"), of the relative error. theta: (P,) ridge coefficients of
    `features`; noise: by kind, standard deviation of log e about a smooth curve; spread: the slope's own scale is
    spread[0] + spread[1] * slope. All three by group, "trained" and "fresh". correlation: of the errors of two arms
    of a race."""

    floors: dict[str, float]
    theta: dict[str, np.ndarray]
    noise: dict[str, dict[str, float]]
    spread: dict[str, tuple[float, float]]
    correlation: float


@cache
def packaged() -> dict[str, Any]:
    """forecast.json: {"recipe", "command", "data", "curves", "swaps", "calibrated_for", "law"}."""
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


@cache
def packaged_law() -> SlopeLaw:
    return law_from(packaged()["law"])


def law_from(record: dict[str, Any]) -> SlopeLaw:
    """The inverse of `law_record`."""
    return SlopeLaw(
        floors=dict(record["floors"]),
        theta={group: np.asarray(values, float) for group, values in record["theta"].items()},
        noise={group: dict(values) for group, values in record["noise"].items()},
        spread={group: (float(values[0]), float(values[1])) for group, values in record["spread"].items()},
        correlation=float(record["correlation"]),
    )


def law_record(law: SlopeLaw) -> dict[str, Any]:
    """A law as forecast.json holds it."""
    return {
        "floors": law.floors,
        "theta": {group: [float(f"{value:.6g}") for value in values] for group, values in law.theta.items()},
        "noise": {g: {kind: float(f"{sd:.4g}") for kind, sd in values.items()} for g, values in law.noise.items()},
        "spread": {group: [float(f"{value:.4g}") for value in values] for group, values in law.spread.items()},
        "correlation": round(law.correlation, 3),
    }


def group_of(scope: str) -> str:
    """Which of the two laws a scope has."""
    return "fresh" if scope in FRESH else "trained"


def log_excess(errors: np.ndarray | float, floor: float) -> np.ndarray:
    return np.asarray(np.log(np.maximum(np.asarray(errors, float) - floor, NEAREST)))


def magnified(error: float, floor: float) -> float:
    """By how much noise of log e is larger in log(e - floor)."""
    return float(error / max(error - floor, STEEPEST))


def features(curve: Curve, kind: str, floor: float, target: float) -> np.ndarray:
    """What a race has shown of a curve: its last slopes, where it is and began over the target, its rate, and what
    it is. (P,)"""
    x, y = np.log(curve.steps + OFFSET), log_excess(curve.errors, floor)
    goal = float(log_excess(target, floor))
    earlier = (-2, max(-3, -len(x)), 0)
    slopes = [-(y[-1] - y[k]) / (x[-1] - x[k]) for k in earlier]
    rate = float(np.clip(np.log2(curve.rate), *RATES))
    levels = [y[-1] - goal, y[0] - goal, rate, np.log(curve.steps[-1] / 100)]
    return np.array([1.0, *slopes, *levels, kind != "vae", *(curve.scope == scope for scope in SCOPES)], float)


def draw_arrivals(
    law: SlopeLaw, curves: Sequence[Curve], target: float, kind: str, *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Steps at which each curve reaches the target, DRAWS draws of all arms of one race together; infinite
    where a draw never does, equal numbers where the arrival was measured. By name, (DRAWS,)."""
    shared = _noise(seed, "")
    return {curve.name: _draw(law, curve, target, kind, shared, _noise(seed, curve.name)) for curve in curves}


def measured_arrival(steps: np.ndarray, errors: np.ndarray, target: float) -> float | None:
    """The step at which a curve was first at the target: between two evaluations by the line through them in log
    steps; None where it was not."""
    there = np.flatnonzero(errors <= target)
    if not len(there):
        return None
    i = int(there[0])
    if i == 0:
        return float(steps[0])
    share = (errors[i - 1] - target) / (errors[i - 1] - errors[i])
    before, after = np.log(steps[i - 1] + 1.0), np.log(steps[i] + 1.0)
    return float(np.exp(before + share * (after - before)) - 1)


def _noise(seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Draws of an arm (of the race for an empty name): t for the slope, normal for the level. They depend on nothing
    but seed and name, so a race that goes on and a race that was resumed read the same ones."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return generator.standard_t(TAIL, DRAWS), generator.standard_normal(DRAWS)


def _draw(
    law: SlopeLaw,
    curve: Curve,
    target: float,
    kind: str,
    shared: tuple[np.ndarray, np.ndarray],
    alone: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    arrival = measured_arrival(curve.steps, curve.errors, target)
    if arrival is not None:
        return np.full(DRAWS, arrival)
    if len(curve.steps) < 2:
        return np.full(DRAWS, np.inf)
    floor, group = law.floors[kind], group_of(curve.scope)
    last, error = float(curve.steps[-1]), float(curve.errors[-1])
    together = law.correlation if group == "trained" and curve.scope != "teacher" else 0.0
    t, normal = (
        np.sqrt(together) * both + np.sqrt(1 - together) * each for both, each in zip(shared, alone, strict=True)
    )
    expected = float(features(curve, kind, floor, target) @ law.theta[group])
    scale = law.spread[group][0] + law.spread[group][1] * max(expected, 0.0)
    noise = law.noise[group][kind] * np.hypot(magnified(error, floor), magnified(target, floor))
    slope = expected + scale * t
    gap = np.maximum(log_excess(error, floor) - log_excess(target, floor) + noise * normal, 0.0)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        reach = np.where(slope > 0, gap / slope, np.inf)
        steps = np.where(reach < FARTHEST, (last + OFFSET) * np.exp(np.minimum(reach, FARTHEST)) - OFFSET, np.inf)
    return np.asarray(np.maximum(steps, last))
