"""One run of the decision study: every strategy of a swap trained on until the base's quality,
from checkpoints that resume.

Strategies begin where they do in a race: at the closed form of the swapped layers, or align+head, lora and finetune at
that of every block, under the name `STRATEGY@align-blocks`, where its error is lower. Every trained one tries the
learning rates RATES times its own and goes on with the best after half of the race's budget. Rates are constant after
the warm-up and every point is the moving average of the weights, so a race is the beginning of the very same run.

Steps: all to NEAR; where nobody is there, FURTHER to FAR; where nobody is there either and the race says "not in
sight", the best TWO to FARTHEST. From scratch, where the plan asks for it, to SCRATCH. An arm stops when it is clearly
there.
"""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from study_plan import LATE, StudyRun, plan_fingerprint
from study_replay import goes_out_of_sight
from study_rows import packed

from sanakit.assembly import LatentDiffusion
from sanakit.hashing import hash_record
from sanakit.strategies.base import STRATEGIES, Strategy
from sanakit.swap.arm import Arm
from sanakit.swap.context import Swap
from sanakit.swap.distill import Teacher
from sanakit.swap.plan import applicable, build
from sanakit.swap.race import RaceSetup, advance, enter
from sanakit.swap.race_store import RaceStore
from sanakit.swap.start import starting_at
from sanakit.training.loop import TrainOptions, fit, new_state

BUDGET = 100  # steps of the race
RATES = (1.0, 0.25, 2.0)
EVALUATED_STEPS = (6, 12, 25, 50, 75, 100, 150, 200, 300, 400, 500, 700, 1000, 1400, 2000, 2800, 3000, 4000)
NEAR, FAR, FARTHEST, SCRATCH = 500, 2000, 4000, 3000
MARGIN = 0.02  # an arm goes on until it is this far below the target
CHECKPOINT_SECONDS = 300.0
BATCH = 32
NAMES = ("reuse", "align", "align-blocks", "align+head", "lora", "cross-attention", "distill", "finetune")
FURTHER = ("lora", "cross-attention", "finetune")
TWO = 2


@dataclass(frozen=True, kw_only=True)
class Length:
    """Steps of a run; a test has fewer."""

    budget: int = BUDGET
    near: int = NEAR
    far: int = FAR
    farthest: int = FARTHEST
    scratch: int = SCRATCH
    rates: Sequence[float] = RATES
    evaluated_steps: Sequence[int] = EVALUATED_STEPS
    names: Sequence[str] = NAMES
    tries: int = 8  # that measure what a step costs

    def upto(self, last: int) -> list[int]:
        return [*(step for step in self.evaluated_steps if step < last), last]


def looks_of(arm: Arm) -> list[tuple[int, np.ndarray]]:
    """Every step at which an arm was evaluated, and its errors (N,)."""
    return list(zip(arm.steps, arm.errors_by_evaluation, strict=True))


@dataclass(kw_only=True)
class Runner:
    """One swap and its arms. folder: of the checkpoints. clock: when the arm at work was last kept."""

    swap: Swap
    run: StudyRun
    folder: Path
    length: Length = Length()
    arms: dict[str, Arm] = field(default_factory=dict)
    setups: dict[str, RaceSetup] = field(default_factory=dict)
    tried: dict[str, dict[str, float | None]] = field(default_factory=dict)
    clock: float = field(default_factory=time.monotonic)

    def finish(self) -> dict[str, Any]:
        """Train what is left to be trained and return the row. Raises RaceStopped after a signal."""
        begun = time.monotonic()
        self.start_all()
        length = self.length
        for name in self.arms:
            self.go_on(name, length.scratch if name == "scratch" else length.near)
        further = [name for name in self.arms if name.partition("@")[0] in FURTHER]
        if not self.arrived_by(length.near):
            for name in further:
                self.go_on(name, length.far)
            if not self.arrived_by(length.far) and goes_out_of_sight(self.facts() | self.curves(), length.budget):
                further.sort(key=lambda name: float(self.arms[name].errors_at(length.far).mean()))
                for name in further[:TWO]:
                    self.go_on(name, length.farthest)
        return self.row((time.monotonic() - begun) / 60)

    def arrived_by(self, step: int) -> bool:
        """Is a strategy of the race at the base's quality by then? An arm that was restored may be further."""
        tolerance = self.swap.target.tolerance
        arms = [arm for name, arm in self.arms.items() if name != "scratch"]
        return any(errors.mean() <= tolerance for arm in arms for s, errors in looks_of(arm) if s <= step)

    @property
    def late(self) -> bool:
        """Does the first strategy that arrives need more than LATE steps?"""
        return not self.arrived_by(LATE) and self.arrived_by(self.length.farthest)

    def start_all(self) -> None:
        """Every arm at its best rate."""
        swap = self.swap
        names = applicable(self.length.names, swap.base_system, swap.candidate)
        names += ["scratch"] if self.run.swap.scratch else []
        blocks, note = None, ""
        for name in names:
            strategy = STRATEGIES.get(name)
            system, scores = self.built(strategy)
            if name == "align-blocks":
                note = str(scores.get("start_note", ""))
                if note:
                    continue
                blocks = system
            if not strategy.follows_start or blocks is None:
                self.arms[name] = self.at_best_rate(name, strategy, system)
                continue
            start = min(("align", "align-blocks"), key=lambda start: self.arms[start].error)
            arm_name = name if start == "align" else f"{name}@{start}"
            begins = system if start == "align" else blocks
            self.arms[arm_name] = self.at_best_rate(arm_name, starting_at(strategy, start), begins)

    def built(self, strategy: type[Strategy]) -> tuple[LatentDiffusion, dict[str, Any]]:
        """The system as a strategy starts it, built once for all that start alike."""
        key, swap = strategy.initialise, self.swap
        known = self.__dict__.setdefault("_starts", {})
        if key not in known:
            data = swap.candidate_data[0], swap.base_data[0]
            known[key] = build(swap.base_system, swap.candidate, strategy, *data, seed=self.run.seed)
        return known[key]

    def setup_of(self, name: str) -> RaceSetup:
        """What all arms share; each has a folder of its own, as two may differ in their start alone."""
        swap = self.swap
        if "shared" not in self.__dict__:
            teacher = Teacher(base=swap.base_system, data=swap.base_data[0], seed=self.run.seed)
            options = TrainOptions(max_steps=self.length.budget, batch_size=BATCH, seed=self.run.seed)
            train, test = swap.candidate_data
            self.shared = RaceSetup(
                data=train, test=test, target=swap.target, count=swap.num_held_out, options=options, teacher=teacher
            )
        facts = {"swap": swap.fingerprint("smoke"), "budget": self.length.budget}
        store = RaceStore(folder=self.folder / name, facts=facts)
        return self.setups.setdefault(name, replace(self.shared, store=store))

    def at_best_rate(self, name: str, strategy: type[Strategy], start: LatentDiffusion) -> Arm:
        """The strategy at the rate that is best after half of the budget; the others' curves are kept."""
        setup, budget = self.setup_of(name), self.length.budget
        tries: list[Arm] = []
        for factor in self.length.rates if strategy.scales else (1.0,):
            system = replace(start, core=deepcopy(start.core))
            rate = factor * strategy.learning_rate
            arm = enter(setup, strategy, system, budget=budget, learning_rate=rate, alike=tries[0] if tries else None)
            for step in self.length.upto(budget // 2):
                advance(setup, arm, step, self.keeper(setup, arm))
            tries.append(arm)
        half = budget // 2
        errors = [np.inf if arm.diverged else float(arm.errors_at(half).mean()) for arm in tries]
        best = tries[int(np.argmin(errors))]
        for arm in tries:
            if arm is not best and setup.store:
                setup.store.settle(arm)
        if best.state:
            self.tried[name] = {
                f"{arm.options.learning_rate:g}": round(error, 5) if np.isfinite(error) else None
                for arm, error in zip(tries, errors, strict=True)
            }
        return best

    def go_on(self, name: str, last: int) -> None:
        """Train an arm to step `last`, unless it is clearly there before."""
        arm, setup = self.arms[name], self.setup_of(name)
        for step in self.length.upto(last):
            if step > self.length.budget and arm.errors_at(step).mean() <= self.swap.target.tolerance - MARGIN:
                return
            advance(setup, arm, step, self.keeper(setup, arm))

    def keeper(self, setup: RaceSetup, arm: Arm) -> Callable[[int], None]:
        """Called after a step: keeps the arm where the last time is CHECKPOINT_SECONDS ago."""

        def keep(step: int) -> None:
            if setup.store and time.monotonic() - self.clock >= CHECKPOINT_SECONDS:
                setup.store.save(arm)
                self.clock = time.monotonic()

        return keep

    def curves(self) -> dict[str, Any]:
        """What a replay reads of every arm: steps, errors (K, N), training losses, and what a step costs."""
        target = self.swap.target
        arms = {
            name: {
                "steps": [int(step) for step in arm.steps],
                "mean": [round(float(errors.mean()), 6) for errors in arm.errors_by_evaluation],
                "errors": packed(arm.errors),
                "by_sigma": [[round(v, 5) for v in result.losses.mean(1).tolist()] for result in arm.results],
                "train_loss": [[step, round(loss, 5)] for step, loss in arm.train_loss],
                "rates": self.tried.get(name, {}),
                "trained_parameters": arm.trained_parameters,
                "diverged": arm.diverged,
            }
            for name, arm in self.arms.items()
        }
        return {
            "tolerance": target.tolerance,
            "unit": round(target.unit, 6),
            "base_errors": packed(target.base),
            "arms": arms,
        }

    def facts(self) -> dict[str, Any]:
        """Which swap it is, the unit of its errors, and the base's core: what a stated probability depends on."""
        swap, study = self.swap, self.run.swap
        parameters = sum(p.numel() for p in swap.base_system.core.parameters())
        return {
            "kind": study.kind,
            "base": study.base,
            "candidate": study.candidate,
            "seed": self.run.seed,
            "measure": swap.target.measure,
            "core": {"parameters": parameters, "tokens": swap.base_system.num_tokens, "batch": BATCH},
        }

    def row(self, minutes: float) -> dict[str, Any]:
        swap, study = self.swap, self.run
        costs, once = self.step_costs()
        return {
            "run": study.name,
            "swap": study.swap.name,
            **self.facts(),
            "plan": plan_fingerprint(),
            "base_fingerprint": hash_record(swap.base_fingerprint),
            "data": swap.images.fingerprint,
            **self.curves(),
            "step_cost": {name: round(cost, 4) for name, cost in costs.items()},
            "cost_once": {name: round(cost, 2) for name, cost in once.items()},
            "minutes": round(minutes, 1),
        }

    def step_costs(self) -> tuple[dict[str, float], dict[str, float]]:
        """Time of a step of every trained arm over that of the slowest, the best of interleaved tries; and what an arm
        spends once before its first step, in the same unit."""
        times: dict[str, list[float]] = {name: [] for name, arm in self.arms.items() if arm.state}
        for _ in range(self.length.tries):
            for name in times:
                times[name].append(self.time_of_steps(name))
        slowest = max((min(values) for values in times.values()), default=1.0)
        steps = {name: min(times[name]) / slowest if name in times else 0.0 for name in self.arms}
        return steps, {n: arm.seconds_once / slowest for n, arm in self.arms.items() if arm.seconds_once}

    def time_of_steps(self, name: str, steps: int = 2) -> float:
        """Seconds of a step of a copy of an arm, which is thrown away."""
        arm, setup = self.arms[name], self.setup_of(name)
        assert arm.state is not None
        core = deepcopy(arm.system.core)
        trained = {key for key, p in arm.system.core.named_parameters() if p.requires_grad}
        groups = [{"params": [p for key, p in core.named_parameters() if key in trained]}]
        system, state = replace(arm.system, core=core), new_state(core, groups, arm.options)
        draw = None
        if arm.strategy.teacher and setup.teacher:
            draw = setup.teacher.draws(system, setup.data, arm.options)
        begun = time.perf_counter()
        fit(system, setup.data, arm.options, state, until=steps, draw=draw)
        return (time.perf_counter() - begun) / steps
