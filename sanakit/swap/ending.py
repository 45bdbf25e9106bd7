"""When a race ends and what it then says: the answer from the forecasts of all arms together, or the time left."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sanakit.distributed import numbers_of_main
from sanakit.errors import SanakitError
from sanakit.swap.arm import Arm
from sanakit.swap.forecast import Answer, answer_of, forecast_from
from sanakit.swap.quality import Target
from sanakit.swap.rungs import Rungs
from sanakit.swap.slope_law import SlopeLaw, draw_arrivals, packaged_law

TOLD, STEPS, TIME = "told", "steps", "time"


@dataclass(frozen=True, kw_only=True)
class TimeLimit:
    """seconds: that may pass since `begun`, a reading of time.monotonic."""

    begun: float
    seconds: float

    def allows(self, seconds: float) -> bool:
        """Whether so much work would still fit. Rank 0's clock decides for every rank."""
        left = self.begun + self.seconds - time.monotonic()
        return numbers_of_main([left - seconds])[0] >= 0


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a race is asked: which strategy reaches the target cheapest, within a horizon of steps. kind: "vae" or
    "text_encoder". seed: of the draws. law: that forecasts."""

    target: Target
    kind: str
    horizon: int
    seed: int
    law: SlopeLaw = field(default_factory=packaged_law)

    @property
    def level(self) -> float:
        """The mean relative error that counts as reached."""
        return float(self.target.tolerance * self.target.base.mean())


@dataclass(frozen=True, kw_only=True)
class RaceResult:
    """finalists: the arms that ran to the end. best: the one that is recommended. step: where the race ended.
    stopped_by: TOLD (its answer was sure enough), STEPS (its budget was spent) or TIME."""

    finalists: list[Arm]
    best: Arm
    answer: Answer
    step: int
    stopped_by: str


def standing(arms: Sequence[Arm], step: int) -> list[Arm]:
    """The arms that had not diverged by an evaluation: a race that is resumed knows already which ones will."""
    return [arm for arm in arms if not arm.diverged or arm.steps[-1] >= step > 0]


def has_arrived(arm: Arm, level: float, step: int) -> bool:
    """Whether an arm was at the target at an evaluation up to a step."""
    return any(e.mean() <= level for s, e in zip(arm.steps, arm.errors_by_evaluation, strict=True) if s <= step)


def conclude(
    question: Question, arms: Sequence[Arm], running: Sequence[Arm], rungs: Rungs, step: int
) -> tuple[Answer, Arm]:
    """The answer of a race that ends at `step`, and the arm that it names; forecasts the arms that can be
    recommended: those that ran to the end, whose arrival was measured, or that train nothing. Raises SK0512 where
    all that train diverged and no other is at the target.

    Where a time limit left no step, nothing is known of what trains: it has no forecast, and "not in sight" has
    probability 0.
    """
    asked = standing(arms, step)
    trained = [arm for arm in arms if arm.state or arm.diverged]
    lost = bool(trained) and not any(arm in asked for arm in trained)
    if lost and not any(has_arrived(arm, question.level, step) for arm in asked):
        told = "; ".join(f"{arm.strategy.name} at {arm.options.learning_rate:g}: {arm.diverged}" for arm in trained)
        raise SanakitError("SK0512", told)
    curves = [arm.curve_at(step, rungs.steps) for arm in asked]
    draws = draw_arrivals(question.law, curves, question.level, question.kind, seed=question.seed)
    able = able_to_answer(question, asked, running, step)
    for arm in arms:
        arm.forecast = None
    unknown = [arm for arm in able if arm.state and not step]
    for arm in able:
        if arm in unknown:
            continue
        reached = bool(arm.errors_at(step).mean() <= question.level)
        arm.forecast = forecast_from(draws[arm.strategy.name], question.horizon, reached=reached)
    able.sort(key=lambda arm: arm.trained_parameters)
    by_name = {arm.strategy.name: arm for arm in asked}
    seconds = numbers_of_main([v for a in asked for v in (a.seconds_once, a.seconds_per_step_at(step))])
    once = dict(zip(by_name, seconds[::2], strict=True))
    per_step = dict(zip(by_name, seconds[1::2], strict=True))

    def cost(name: str, steps: np.ndarray) -> np.ndarray:
        return np.where(steps > 0, once[name] + per_step[name] * np.where(np.isfinite(steps), steps, 0.0), 0.0)

    answer = answer_of(
        draws,
        cost,
        [arm.strategy.name for arm in able],
        horizon=question.horizon,
        step=max(per_step.values()) or 1.0,
    )
    if not answer.in_sight:
        nearest = min(able, key=lambda arm: float(arm.errors_at(step).mean()))
        answer = replace(answer, name=nearest.strategy.name, probability=0.0 if unknown else answer.probability)
    return answer, by_name[answer.name]


def able_to_answer(question: Question, arms: Sequence[Arm], running: Sequence[Arm], step: int) -> list[Arm]:
    """The arms that can be recommended; where the last ones that ran all diverged, those that came furthest before."""
    able = [a for a in arms if a in running or a.state is None or has_arrived(a, question.level, step)]
    if not able:
        furthest = max(arm.steps[-1] for arm in arms)
        able = [arm for arm in arms if arm.steps[-1] == furthest]
        for arm in able:
            arm.dropped = ""
    return able


def seconds_needed(running: Sequence[Arm], rung: int) -> float:
    """What training and evaluating the running arms up to a rung would take, by what they took so far."""
    behind = [arm for arm in running if arm.steps[-1] < rung and not arm.diverged]
    return sum((rung - arm.steps[-1]) * arm.seconds_per_step + arm.evaluation_seconds for arm in behind)
