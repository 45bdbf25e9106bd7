"""What the decision study has measured of each swap: the arms of its race, run to their ends. study_rows.py reads the
runs; those of the evaluation third are not read here.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from study_fit import StudyCurve
from study_rows import RESULTS, read_fitting, unpacked

from sanakit.strategies.base import STRATEGIES
from sanakit.swap.slope_law import Curve

KINDS = {"vae": "vae", "text": "text_encoder"}


@dataclass(frozen=True, kw_only=True)
class StudyArm:
    """steps (K,), errors (K, N) relative, per image. step_cost: time of a step over the slowest arm's; once: spent
    before the first step, in the same unit. rates: how many learning rates were tried. trained: False for a closed
    form alone. parameters: that are trained. diverged: why it did not go on, empty where it did."""

    curve: Curve
    errors: np.ndarray
    step_cost: float
    once: float
    rates: int
    parameters: int
    diverged: str = ""

    @property
    def trained(self) -> bool:
        return len(self.curve.steps) > 1


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """One swap with one seed. kind: "vae" or "text_encoder". base_errors: (N,). core: {"parameters", "tokens",
    "batch"}. facts: what the results keep beside."""

    kind: str
    base: str
    candidate: str
    seed: int
    tolerance: float
    base_errors: np.ndarray
    arms: dict[str, StudyArm]
    core: dict[str, int]
    measure: str
    facts: dict[str, Any]

    @property
    def swap(self) -> str:
        return f"{self.base} {self.kind} {self.candidate.split('/')[-1]}"

    @property
    def level(self) -> float:
        """The mean relative error that counts as reached."""
        return float(self.tolerance * self.base_errors.mean())

    def curves(self) -> list[StudyCurve]:
        """Of every arm that trains, controls too."""
        return [
            StudyCurve(
                swap=self.swap, base=self.base, seed=self.seed, kind=self.kind, target=self.level, curve=arm.curve
            )
            for arm in self.arms.values()
            if arm.trained
        ]


def study_arm(
    name: str,
    steps: np.ndarray,
    errors: np.ndarray,
    rates: dict[str, float | None],
    *,
    step_cost: float,
    once: float,
    parameters: int,
    diverged: str = "",
) -> StudyArm:
    """rates: error by learning rate, as the sweep left it; the best one is the curve's. The rest as in StudyArm."""
    strategy = STRATEGIES.get(name.partition("@")[0])
    known = {float(rate): error for rate, error in rates.items() if error is not None}
    best = min(known, key=known.__getitem__) if known else strategy.learning_rate
    curve = Curve(
        name=name,
        scope=strategy.scope(),
        rate=best / strategy.learning_rate,
        steps=np.asarray(steps, float),
        errors=errors.mean(1),
    )
    return StudyArm(
        curve=curve,
        errors=errors,
        step_cost=step_cost,
        once=once,
        rates=max(1, len(rates)),
        parameters=parameters,
        diverged=diverged,
    )


def from_row(row: dict[str, Any]) -> StudyRecord:
    """A run of the study, of the arms that a race has (`raced`) and the controls. Its costs may not be
    there yet."""
    costs, slowest = costs_of_strategies(row.get("step_cost", {}))
    once, arms = {name: cost / slowest for name, cost in row.get("cost_once", {}).items()}, {}
    names = raced(row["arms"])
    for name in [*names, *(control for control in ("naive", "scratch") if control in row["arms"])]:
        arm = row["arms"][name]
        cost = costs.get(name, 1.0 if len(arm["steps"]) > 1 else 0.0)
        arms[name] = study_arm(
            name,
            np.asarray(arm["steps"]),
            unpacked(arm["errors"]),
            arm["rates"],
            step_cost=cost,
            once=once.get(name, 0.0),
            parameters=arm["trained_parameters"],
            diverged=arm.get("diverged", ""),
        )
    return StudyRecord(
        kind=KINDS[row["kind"]],
        base=row["base"],
        candidate=row["candidate"],
        seed=row["seed"],
        tolerance=row["tolerance"],
        base_errors=unpacked(row["base_errors"]),
        arms=arms,
        core=row["core"],
        measure=row["measure"],
        facts={key: row[key] for key in ("minutes",) if key in row},
    )


def costs_of_strategies(measured: dict[str, float]) -> tuple[dict[str, float], float]:
    """Time of a step by arm over the slowest's, and what the slowest's was before. Arms that differ in their start
    alone do the same work at every step: the lower of their times holds for both, the rest is the machine's."""
    least: dict[str, float] = {}
    for name, cost in measured.items():
        plain = name.partition("@")[0]
        least[plain] = min(cost, least.get(plain, cost))
    slowest = max(least.values(), default=1.0) or 1.0
    return {name: least[name.partition("@")[0]] / slowest for name in measured}, slowest


def raced(arms: dict[str, Any]) -> list[str]:
    """No controls; of the arms that differ in their start, those at the start of lower error before any step
    (`train.start auto`)."""
    first = {name: arm["mean"][0] for name, arm in arms.items()}
    blocks = first.get("align-blocks", np.inf) < first.get("align", np.inf)
    chosen = []
    for name in arms:
        plain, _, start = name.partition("@")
        twins = plain in arms and f"{plain}@align-blocks" in arms
        if not STRATEGIES.get(plain).control and (not twins or bool(start) == blocks):
            chosen.append(name)
    return chosen


def read_records(done: Collection[str], results: Path = RESULTS) -> list[StudyRecord]:
    """What rules may be made from. done: names of the study's runs that count."""
    return [from_row(row) for row in read_fitting(results) if row["run"] in done]


def fingerprint(records: Collection[StudyRecord]) -> str:
    """Of every curve that was fitted."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record.swap} {record.seed} {record.level:.6f}".encode())
        for name, arm in record.arms.items():
            digest.update(name.encode() + arm.curve.steps.tobytes() + arm.errors.astype("<f4").tobytes())
    return digest.hexdigest()[:16]


def calibrated_for(records: Collection[StudyRecord]) -> dict[str, dict[str, Any]]:
    """By kind, the range of cores that the records were run on, and the unit of their errors."""
    ranges: dict[str, dict[str, Any]] = {}
    for kind in KINDS.values():
        of_kind = [record for record in records if record.kind == kind]
        sizes = {
            key: [f([r.core[key] for r in of_kind]) for f in (min, max)] for key in ("parameters", "tokens", "batch")
        }
        ranges[kind] = sizes | {"measure": of_kind[0].measure}
    return ranges
