"""Is the smoke stage right? Run every strategy of a swap to the end and compare with what its race would have said.

    python experiments/decision_study.py vae dc-f16c16 --max-steps 1000     # one swap; adds its row
    python experiments/decision_study.py summary                            # rates over all rows, docs table

Fair arms: every strategy is run at several learning rates (its own times 1/2, 1 and 2); after --sweep-steps the best
goes on. Rates are constant after the warm-up and every point is the moving average of the weights, so the smoke race
is the beginning of the very same runs: its decision is replayed from them with nothing trained twice. Truth: the
cheapest strategy (steps x measured seconds a step) whose decoded one-step error on 256 held-out pictures comes within
TOLERANCE of the base's. A swap that nobody brings there within --max-steps has no truth but "not reached".
"""

import argparse
import json
import math
import platform
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from sanakit.config import make_config
from sanakit.evaluate import matched_sigmas
from sanakit.run import RunFolder
from sanakit.swap.base import STRATEGIES
from sanakit.swap.context import Swap
from sanakit.swap.forecast import TOLERANCE, forecast
from sanakit.swap.plan import applicable, build
from sanakit.swap.race import Arm, Course, advance, enter, rungs, survivors

RESULTS = Path("experiments/results/decision_study.json")
BUDGET = 100
PICTURES = 256


def looks(max_steps: int) -> list[int]:
    """The rungs of the smoke race, then about four points an octave."""
    later = {round(BUDGET * 2 ** (k / 2)) for k in range(1, 20)}
    return sorted({*rungs(BUDGET), *(s for s in later if s < max_steps), max_steps})


def run_strategy(course: Course, start: Any, name: str, args: argparse.Namespace, target: float) -> Arm:
    """The strategy at its best learning rate, trained until it reaches `target` or --max-steps."""
    strategy = STRATEGIES.get(name)
    sweep = args.sweep_steps * (4 if name == "scratch" else 1)  # what is good early is not what is good late
    rates = [strategy.learning_rate * factor for factor in args.rates] if strategy.scales else [None]
    arms = []
    for rate in rates:
        system = replace(start, core=deepcopy(start.core))
        arm = enter(course, strategy, system, budget=BUDGET, learning_rate=rate)
        for step in looks(args.max_steps):
            if step <= sweep and arm.error > target:
                advance(course, arm, step)
        arms.append(arm)
        print(f"  {name} at {rate}: {arm.error:.4f} after {arm.steps[-1]} steps", flush=True)
    best = min(arms, key=lambda arm: arm.error)
    for step in looks(args.max_steps):
        if step > sweep and best.error > target:
            advance(course, best, step)
    best.scores["sweep"] = {f"{arm.options.learning_rate:g}": round(arm.error, 5) for arm in arms}
    print(f"  {name}: {best.error:.4f} after {best.steps[-1]} steps, target {target:.4f}", flush=True)
    return best


def smoke_decision(arms: dict[str, Arm], base_errors: np.ndarray) -> dict[str, Any]:
    """What `race` and `recommend` would have said after BUDGET steps, from the first 128 pictures."""
    rows = slice(0, 128)
    upto = dict.fromkeys(arms, 0)
    running = [name for name in arms if arms[name].state]
    at = lambda name, step: arms[name].errors[max(i for i, s in enumerate(arms[name].steps) if s <= step), rows]
    for rung in rungs(BUDGET):
        for name in running:
            upto[name] = rung
        running.sort(key=lambda name: at(name, rung).mean())
        running = running[: survivors(len(running), rung, BUDGET)]
    forecasts = {}
    for name, arm in arms.items():
        count = sum(step <= upto[name] for step in arm.steps)
        forecasts[name] = forecast(arm.steps[:count], arm.errors[:count, rows], base_errors[rows])
    arrived = [name for name, f in forecasts.items() if math.isfinite(f.steps)]
    cost = lambda name: (forecasts[name].steps * arms[name].seconds_per_step, arms[name].trained_parameters)
    best = min(arrived, key=cost) if arrived else min(arms, key=lambda name: at(name, upto[name]).mean())
    return {
        "recommended": best,
        "forecasts": {name: f.as_dict() for name, f in forecasts.items()},
        "errors": {name: float(at(name, upto[name]).mean()) for name in arms},
    }


def study(args: argparse.Namespace) -> dict[str, Any]:
    key = "vae" if args.kind == "vae" else "text_encoder"
    values = {
        "base": args.base,
        key: {"name": args.candidate},
        "train": {"seed": args.seed},
        "smoke": {"held_out": PICTURES},
    }
    config = make_config(values)
    swap = Swap(config=config, run=RunFolder(Path(), config))
    base, candidate = swap.base_system, swap.candidate
    (train, test), (base_train, _) = swap.candidate_data, swap.base_data
    base_errors = swap.base_held_out.one_step.numpy()
    target = TOLERANCE * float(base_errors.mean())
    names = args.strategies or applicable(config.smoke.strategies, base, candidate)

    arms: dict[str, Arm] = {}
    starts: dict[str, Any] = {}
    for name in names:
        strategy = STRATEGIES.get(name)
        if strategy.initialise not in starts:
            starts[strategy.initialise] = build(base, candidate, strategy, train, base_train, seed=args.seed)[0]
        start = starts[strategy.initialise]
        course = Course(
            data=train,
            test=test,
            images=swap.test_images,
            image_sigmas=matched_sigmas(start, base),
            seed=args.seed,
        )
        arms[name] = run_strategy(course, start, name, args, target)

    reached = {name: arm.steps[-1] for name, arm in arms.items() if arm.error <= target}
    cost = {name: steps * arms[name].seconds_per_step for name, steps in reached.items()}
    truth = min(cost, key=cost.__getitem__) if cost else "not reached"
    smoke = smoke_decision(arms, base_errors)
    recommended = smoke["recommended"]
    covered = {}
    for name, steps in reached.items():
        f = smoke["forecasts"][name]
        low, high = (f[f"predicted_steps_{end}"] for end in ("low", "high"))
        covered[name] = (low or 0) <= steps <= (high if high is not None else math.inf)
    return {
        "kind": args.kind,
        "base": args.base,
        "candidate": args.candidate,
        "seed": args.seed,
        "max_steps": args.max_steps,
        "target": target,
        "truth": truth,
        "recommended": recommended,
        "right": recommended == truth or (bool(cost) and cost.get(recommended, math.inf) <= 1.1 * cost[truth]),
        "steps": {name: reached.get(name) for name in arms},
        "covered": covered,
        "smoke_errors": smoke["errors"],
        "final_errors": {name: arm.error for name, arm in arms.items()},
        "forecasts": smoke["forecasts"],
        "curves": {n: [arm.steps, [round(float(e), 5) for e in arm.errors.mean(1)]] for n, arm in arms.items()},
        "losses": {n: [round(r.loss, 4) for r in arm.results] for n, arm in arms.items()},
        "learning_rates": {n: arm.scores["sweep"] for n, arm in arms.items()},
        "seconds_per_step": {n: round(arm.seconds_per_step, 3) for n, arm in arms.items()},
        "command": f"python experiments/decision_study.py {args.kind} {args.candidate} --max-steps {args.max_steps} "
        f"--seed {args.seed} --sweep-steps {args.sweep_steps} --rates {','.join(f'{rate:g}' for rate in args.rates)}"
        + (f" --strategies {','.join(args.strategies)}" if args.strategies else ""),
    }


def summarise(found: dict[str, Any]) -> dict[str, Any]:
    rows = found["swaps"]
    ranks, covered, near = [], [], []
    for row in rows:
        names = list(row["smoke_errors"])
        if len(names) > 2:
            pairs = [(row["smoke_errors"][n], row["final_errors"][n]) for n in names]
            ranks.append(float(spearmanr(*zip(*pairs, strict=True)).statistic))
        covered += row["covered"].values()
        steps = row["steps"]
        if steps.get("scratch") and row["truth"] != "not reached":
            near.append(steps[row["truth"]] / steps["scratch"])
    decided = [row["right"] for row in rows if row["truth"] != "not reached"]
    mean = lambda values: round(float(np.mean(values)), 4) if values else None
    return found | {
        "decision_accuracy": mean(decided),
        "decided_swaps": len(decided),
        "spearman_smoke_full": mean(ranks),
        "interval_coverage": mean(covered),
        "near_steps_ratio": mean(near),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("vae", "text", "summary"))
    parser.add_argument("candidate", nargs="?")
    parser.add_argument("--base", default="tiny-sana")
    parser.add_argument("--max-steps", type=int, default=1000)
    parser.add_argument("--sweep-steps", type=int, default=BUDGET)
    parser.add_argument("--rates", type=lambda text: [float(t) for t in text.split(",")], default=[0.5, 1.0, 2.0])
    parser.add_argument("--strategies", type=lambda text: text.split(","))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"swaps": []}
    if args.kind != "summary":
        start = time.monotonic()
        row = study(args) | {"minutes": round((time.monotonic() - start) / 60, 1)}
        found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else found  # another swap may have ended meanwhile
        same = lambda other: all(other[k] == row[k] for k in ("kind", "candidate", "base", "seed"))
        found["swaps"] = [other for other in found["swaps"] if not same(other)] + [row]
    found = summarise(found) | {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}",
        "command": "python experiments/decision_study.py KIND CANDIDATE, one a swap",
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({k: v for k, v in found.items() if k != "swaps"}, indent=1))


if __name__ == "__main__":
    main()
