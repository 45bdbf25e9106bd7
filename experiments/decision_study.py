"""Is the smoke stage right? Run every strategy of a swap to the end and compare with what its race would have said.

    python experiments/study_world.py base dc-minilm                 # once: the bases, and `candidates`
    python experiments/decision_study.py run dc-minilm vae dc-f16c16 # one swap; adds its curves
    python experiments/decision_study.py summary                     # decisions, rates and intervals over all curves

Fair arms: every trained strategy starts at several learning rates (its own times 1/4, 1, 2); the best after a quarter
of the smoke budget goes on. Rates are constant after the warm-up and every point is the moving average of the weights, so the smoke
race is the beginning of the very same runs: `summary` replays its decision from the curves with nothing trained twice.
Every strategy runs to --max-steps; the best one then goes on to --far-steps. An arm stops when it is at the base's
quality. Truth: the cheapest strategy that reaches the target of swap/quality.py, cost = steps x the strategy's step
time, measured side by side.
"""

import argparse
import json
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from sanakit.config import make_config
from sanakit.run import RunFolder
from sanakit.swap.base import STRATEGIES
from sanakit.swap.context import Swap
from sanakit.swap.plan import applicable, build
from sanakit.swap.race import Arm, Course, advance, at_best_rate, rungs
from sanakit.train import fit

RESULTS = Path("experiments/results")
WORLD = Path("runs/study")
CURVES = WORLD / "curves"
BUDGET = 100
PICTURES = 128
STRATEGY_NAMES = ("reuse", "align", "align+head", "lora", "cross-attention", "finetune", "naive", "scratch")


def looks(max_steps: int) -> list[int]:
    """The rungs of the smoke race, then two points an octave."""
    later = {round(BUDGET * 2 ** (k / 2)) for k in range(1, 14)}
    return sorted({*rungs(BUDGET), *(s for s in later if s < max_steps), max_steps})


def swap_of(args: argparse.Namespace) -> Swap:
    values = {
        "base": f"path:{WORLD / f'base-{args.base}'}",
        "vae" if args.kind == "vae" else "text_encoder": {"name": args.candidate},
        "data": {"image_size": 64},
        "train": {"seed": args.seed},
        "smoke": {"held_out": PICTURES},
    }
    config = make_config(values)
    return Swap(config=config, run=RunFolder(Path(), config))


def step_costs(course: Course, arms: dict[str, Arm]) -> dict[str, float]:
    """Time of a step of every trained strategy over that of the slowest; the best of interleaved tries."""
    times: dict[str, list[float]] = {name: [] for name, arm in arms.items() if arm.state}
    for _ in range(4):
        for name in times:
            arm = deepcopy_arm(arms[name])
            start = time.perf_counter()
            fit(arm.system, course.data, arm.options, arm.state, until=arm.state.step + 2)  # type: ignore[union-attr, arg-type]
            times[name].append(time.perf_counter() - start)
    slowest = max(min(values) for values in times.values())
    return {name: min(times[name]) / slowest if name in times else 0.0 for name in arms}


def deepcopy_arm(arm: Arm) -> Arm:
    """A fresh arm of the same strategy, to be timed and thrown away."""
    from sanakit.train import new_state

    core = deepcopy(arm.system.core)
    system = replace(arm.system, core=core)
    trained = {name for name, p in arm.system.core.named_parameters() if p.requires_grad}
    groups = [{"params": [p for name, p in core.named_parameters() if name in trained]}]
    return replace(arm, system=system, state=new_state(core, groups, arm.options))


def run(args: argparse.Namespace) -> None:
    """Train every strategy of one swap and write its curves."""
    begun = time.monotonic()
    swap = swap_of(args)
    base, candidate, target = swap.base_system, swap.candidate, swap.target
    (train, test), (base_train, _) = swap.candidate_data, swap.base_data
    starts: dict[str, Any] = {}
    arms: dict[str, Arm] = {}
    for name in applicable(STRATEGY_NAMES, base, candidate):
        strategy = STRATEGIES.get(name)
        if strategy.initialise not in starts:
            starts[strategy.initialise] = build(base, candidate, strategy, train, base_train, seed=args.seed)[0]
        start = starts[strategy.initialise]
        course = Course(data=train, test=test, target=target, count=PICTURES, seed=args.seed)
        arms[name] = at_best_rate(course, strategy, start, budget=BUDGET, rates=args.rates)
    costs = step_costs(course, arms)

    def go_on(arm: Arm, until: int) -> None:
        for step in looks(until):
            if arm.error > args.stop:
                advance(course, arm, step)

    for name, arm in arms.items():
        go_on(arm, args.max_steps)
        print(f"  {args.candidate} {name}: {arm.error:.3f} after {arm.steps[-1]} steps", flush=True)
    best = min(arms, key=lambda name: arms[name].error)
    if all(arm.error > target.tolerance for arm in arms.values()):
        go_on(arms[best], args.far_steps)
        print(f"  {args.candidate} {best}: {arms[best].error:.3f} after {arms[best].steps[-1]} steps", flush=True)

    name = f"{args.base}--{args.kind}--{args.candidate.removeprefix('path:').replace('/', '-')}--{args.seed}"
    CURVES.mkdir(parents=True, exist_ok=True)
    tensors = {f"{n}/errors": arm.errors.astype(np.float32) for n, arm in arms.items()}
    tensors |= {f"{n}/steps": np.asarray(arm.steps) for n, arm in arms.items()} | {
        "base": target.base.astype(np.float32)
    }
    save_file(tensors, CURVES / f"{name}.safetensors")
    record = {
        "kind": args.kind,
        "base": args.base,
        "candidate": args.candidate,
        "seed": args.seed,
        "tolerance": target.tolerance,
        "unit": round(target.unit, 5),
        "rates": {n: arm.scores["rates"] for n, arm in arms.items()},
        "step_cost": {n: round(c, 3) for n, c in costs.items()},
        "losses": {n: [round(r.loss, 4) for r in arm.results] for n, arm in arms.items()},
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "command": f"python experiments/decision_study.py run {args.base} {args.kind} {args.candidate} --seed {args.seed}",
    }
    (CURVES / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("base")
    one.add_argument("kind", choices=("vae", "text"))
    one.add_argument("candidate")
    one.add_argument("--max-steps", type=int, default=800)
    one.add_argument("--far-steps", type=int, default=2400)
    one.add_argument("--rates", type=lambda text: [float(t) for t in text.split(",")], default=[1.0, 0.25, 2.0])
    one.add_argument("--stop", type=float, default=1.0, help="relative error at which an arm stops")
    one.add_argument("--seed", type=int, default=0)
    commands.add_parser("summary")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "run":
        run(args)


if __name__ == "__main__":
    main()
