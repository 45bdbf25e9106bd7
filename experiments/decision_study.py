"""Is the smoke stage right? Run every strategy of a swap to the end and compare with what its race would have said.

    python experiments/study_world.py base dc-minilm                 # once: the bases, and `candidates`
    python experiments/decision_study.py run dc-minilm vae dc-f16c16 # one swap; adds its curves
    python experiments/decision_study.py scratch dc-f16c16           # scratch alone, on tiny-sana
    python experiments/decision_study.py summary                     # decisions, rates and intervals over all curves

Fair arms: every trained strategy starts at several learning rates (its own times 1/4, 1, 2); the best after a quarter
of the smoke budget goes on. Rates are constant after the warm-up and every point is the moving average of the weights, so the smoke
race is the beginning of the very same runs: `summary` replays its decision from the curves with nothing trained twice.
Every strategy runs to --max-steps; where none has reached the base's quality, the best two go on to --far-steps, and
scratch to --scratch-steps if that is further. An arm stops when it is clearly there. Truth: the cheapest strategy that
reaches the target of swap/quality.py, cost = steps x the strategy's step time, measured side by side, and what
distillation spends on the base's trajectories before its first step.
"""

import argparse
import json
import platform
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from scipy.stats import spearmanr

from sanakit.config import make_config
from sanakit.run import RunFolder
from sanakit.swap.arm import Arm
from sanakit.swap.base import STRATEGIES
from sanakit.swap.context import Swap
from sanakit.swap.distill import Teacher
from sanakit.swap.forecast import forecast, steps_to_reach
from sanakit.swap.plan import applicable, build
from sanakit.swap.race import Course, advance, at_best_rate, recommend, rungs, survivors
from sanakit.train import TrainOptions, fit

RESULTS = Path("experiments/results")
WORLD = Path("runs/study")
CURVES = RESULTS / "decision_study"
BUDGET = 100
PICTURES = 128
NEAR = ("near-dc", "moved-dc", "pca-f16c24", "pca-f16c48", "pca-rotated")
RUN_ON = 2000  # steps of scratch that say something where it did not get there
MARGIN = 0.02  # an arm goes on until it is this far below the target
STRATEGY_NAMES = ("reuse", "align", "align+head", "lora", "cross-attention", "distill", "finetune", "naive", "scratch")


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


def step_costs(course: Course, arms: dict[str, Arm]) -> tuple[dict[str, float], dict[str, float]]:
    """Time of a step of every trained strategy over that of the slowest, the best of interleaved tries; and what a
    strategy spends once before its first step, in the same unit."""
    times: dict[str, list[float]] = {name: [] for name, arm in arms.items() if arm.state}
    for _ in range(4):
        for name in times:
            arm = deepcopy_arm(arms[name])
            draw = course.teacher.draws(arm.system, course.data, arm.options) if arm.strategy.teacher else None  # type: ignore[union-attr]
            start = time.perf_counter()
            fit(arm.system, course.data, arm.options, arm.state, until=arm.state.step + 2, draw=draw)  # type: ignore[union-attr, arg-type]
            times[name].append(time.perf_counter() - start)
    slowest = max(min(values) for values in times.values())
    steps = {name: min(times[name]) / slowest if name in times else 0.0 for name in arms}
    return steps, {name: arm.seconds_once / (slowest / 2) for name, arm in arms.items() if arm.seconds_once}


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
    teacher = Teacher(base=base, data=base_train, seed=args.seed)
    options = TrainOptions(max_steps=BUDGET, batch_size=32, seed=args.seed)
    course = Course(data=train, test=test, target=target, count=PICTURES, options=options, teacher=teacher)
    for name in applicable(STRATEGY_NAMES, base, candidate):
        strategy = STRATEGIES.get(name)
        if strategy.initialise not in starts:
            starts[strategy.initialise] = build(base, candidate, strategy, train, base_train, seed=args.seed)[0]
        start = starts[strategy.initialise]
        arms[name] = at_best_rate(course, strategy, start, budget=BUDGET, rates=args.rates)
    costs, once = step_costs(course, arms)

    def go_on(arm: Arm, until: int) -> None:
        for step in looks(until):
            if arm.error > target.tolerance - MARGIN:
                advance(course, arm, step)

    for name, arm in arms.items():
        go_on(arm, args.max_steps)
        print(f"  {args.candidate} {name}: {arm.error:.3f} after {arm.steps[-1]} steps", flush=True)
    if all(arm.error > target.tolerance for arm in arms.values()):
        for name in sorted(arms, key=lambda name: arms[name].error)[:2]:
            go_on(arms[name], args.far_steps)
            print(f"  {args.candidate} {name}: {arms[name].error:.3f} after {arms[name].steps[-1]} steps", flush=True)
    if scratch := arms.get("scratch"):
        go_on(scratch, args.scratch_steps)
        print(f"  {args.candidate} scratch: {scratch.error:.3f} after {scratch.steps[-1]} steps", flush=True)

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
        "cost_once": {n: round(c, 1) for n, c in once.items()},
        "losses": {n: [round(r.loss, 4) for r in arm.results] for n, arm in arms.items()},
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "command": f"python experiments/decision_study.py run {args.base} {args.kind} {args.candidate} --seed {args.seed} "
        f"--max-steps {args.max_steps} --far-steps {args.far_steps} --scratch-steps {args.scratch_steps}",
    }
    (CURVES / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def run_scratch(args: argparse.Namespace) -> None:
    """Scratch alone on tiny-sana: is the embedded world hard enough to tell strategies apart?"""
    values = {"base": "tiny-sana", "vae": {"name": args.candidate}, "smoke": {"held_out": PICTURES}}
    config = make_config(values)
    swap = Swap(config=config, run=RunFolder(Path(), config))
    strategy, (train, test), (base_train, _) = STRATEGIES.get("scratch"), swap.candidate_data, swap.base_data
    start = build(swap.base_system, swap.candidate, strategy, train, base_train, seed=0)[0]
    options = TrainOptions(max_steps=BUDGET, batch_size=32)
    course = Course(data=train, test=test, target=swap.target, count=PICTURES, options=options)
    arm = at_best_rate(course, strategy, start, budget=BUDGET, rates=args.rates)
    for step in looks(args.steps):
        advance(course, arm, step)
        print(f"step {step}: error {arm.error:.3f}, reached at {swap.target.tolerance}", flush=True)
    found = {
        "base": "tiny-sana",
        "candidate": args.candidate,
        "tolerance": swap.target.tolerance,
        "rates": arm.scores["rates"],
        "steps": arm.steps,
        "errors": arm.errors.mean(1).round(4).tolist(),
        "command": f"python experiments/decision_study.py scratch {args.candidate} --steps {args.steps}",
    }
    (RESULTS / "scratch_tiny_sana.json").write_text(json.dumps(found, indent=1) + "\n")


def cost_to(
    steps: np.ndarray, curve: np.ndarray, target: float, step_cost: float = 1.0, once: float = 0.0
) -> float | None:
    """Steps x step cost (and what is spent once) until the curve is first at the target, between two looks by the line
    through them in log steps; None where it never is."""
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


def replay(record: dict[str, Any], curves: dict[str, np.ndarray], budget: int = BUDGET) -> dict[str, Any]:
    """The row of one swap: what the race would have said after `budget` steps, and what became of every strategy."""
    names, once = list(record["step_cost"]), record.get("cost_once", {})
    steps = {n: curves[f"{n}/steps"] for n in names}
    errors = {n: curves[f"{n}/errors"].astype(float) for n in names}
    goal = SimpleNamespace(base=curves["base"].astype(float), tolerance=record["tolerance"])
    mean = {n: errors[n].mean(1) for n in names}

    upto = dict.fromkeys(names, 0)
    running = [n for n in names if len(steps[n]) > 1]
    at = lambda n, step: mean[n][steps[n] <= step][-1]
    for rung in rungs(budget):
        upto |= dict.fromkeys(running, rung)
        running.sort(key=lambda n: at(n, rung))
        running = running[: survivors([errors[n][steps[n] <= rung][-1] for n in running], rung, budget)]
    arms = []
    for n in names:
        seen = np.isin(steps[n], [0, *rungs(budget)]) & (steps[n] <= upto[n])
        found = forecast(steps[n][seen].tolist(), errors[n][seen], goal)
        spent = lambda steps, n=n: steps * record["step_cost"][n] + once.get(n, 0.0) if steps else 0.0
        arms.append(
            SimpleNamespace(
                name=n,
                steps=steps[n][seen].tolist(),
                forecast=found,
                cost=spent,
                trained_parameters=0,
                error=at(n, upto[n]),
                diverged="",
            )
        )
    best = recommend(arms)
    conclusive = best.forecast.conclusive
    in_sight = bool(np.isfinite(best.forecast.steps)) and (best.forecast.reached or best.steps[-1] == budget)

    costs = {n: cost_to(steps[n], mean[n], goal.tolerance, record["step_cost"][n], once.get(n, 0.0)) for n in names}
    needed = {n: cost_to(steps[n], mean[n], goal.tolerance) for n in names}
    reached = {n: c for n, c in costs.items() if c is not None}
    truth = min(reached, key=reached.__getitem__) if reached else "not reached"
    regret = (reached[best.name] + 1) / (reached[truth] + 1) if reached and in_sight and best.name in reached else None
    covered = {}
    for arm in arms:
        low = arm.forecast.low
        high = arm.forecast.high
        actual = needed[arm.name]
        last = float(steps[arm.name][-1])
        if arm.forecast.reached or last <= upto[arm.name]:
            continue  # measured, not forecast; or not run any further than the race
        covered[arm.name] = bool(low <= actual <= high) if actual is not None else bool(high > last)
    return {key: record[key] for key in ("kind", "base", "candidate", "seed")} | {
        "truth": truth,
        "recommended": best.name if in_sight else f"not in sight, {best.name} is nearest",
        "conclusive": conclusive,
        "right": (regret is not None and regret <= 1.1) if reached else not in_sight,
        "regret": None if regret is None else round(regret, 3),
        "steps": {n: None if v is None else round(v) for n, v in needed.items()},
        "run_to": {n: int(s[-1]) for n, s in steps.items()},
        "forecast": {arm.name: arm.forecast.as_dict() for arm in arms},
        "covered": covered,
        "smoke_errors": {n: round(float(at(n, upto[n])), 4) for n in names},
        "final_errors": {n: round(float(m[-1]), 4) for n, m in mean.items()},
        "curves": {n: [steps[n].tolist(), mean[n].round(4).tolist()] for n in names},
        "cost_once": once,
        **{key: record[key] for key in ("rates", "step_cost", "minutes", "command")},
    }


def same_step_errors(row: dict[str, Any]) -> tuple[list[float], list[float]] | None:
    """The trained strategies' errors at the end of smoke and at the last step that all of them ran; None where that is
    no further."""
    trained = [c for c in row["curves"].values() if len(c[0]) > 1]
    last = min(c[0][-1] for c in trained)
    if len(trained) < 3 or last <= BUDGET:
        return None
    value = lambda curve, step: curve[1][max(i for i, s in enumerate(curve[0]) if s <= step)]
    return [value(c, BUDGET) for c in trained], [value(c, last) for c in trained]


def ranks(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Spearman of smoke and full: of the strategies of one swap (mean over swaps), of all strategies of all swaps, and of
    the swaps by their best strategy, which is how candidates are compared."""
    pairs = [pair for row in rows if (pair := same_step_errors(row))]
    if len(pairs) < 3:
        return dict.fromkeys(("spearman_smoke_full", "spearman_pooled", "spearman_candidates"))
    rank = lambda smoke, full: float(spearmanr(smoke, full)[0])
    found = {
        "spearman_smoke_full": np.mean([rank(*pair) for pair in pairs]),
        "spearman_pooled": rank(*(np.concatenate(side) for side in zip(*pairs, strict=True))),
        "spearman_candidates": rank(*([min(errors) for errors in side] for side in zip(*pairs, strict=True))),
    }
    return {name: round(float(value), 4) for name, value in found.items()}


def scratch_ratio(row: dict[str, Any]) -> float | None:
    """Steps of the cheapest sufficient strategy over those of scratch, or of as many as scratch was run for in vain: then
    an upper bound."""
    if row["truth"] == "not reached":
        return None
    return row["steps"][row["truth"]] / (row["steps"]["scratch"] or row["run_to"]["scratch"])


def stretches(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """By swap: log(true steps / BUDGET) over log(forecast steps / BUDGET), the target any error that a strategy reached
    after the race. What STRETCH of swap/forecast.py is made of."""
    found: dict[str, list[float]] = {}
    for row in rows:
        factors = found.setdefault(f"{row['base']} {row['candidate']} {row['seed']}", [])
        for steps, curve in row["curves"].values():
            seen = [i for i, s in enumerate(steps) if s <= BUDGET]
            for i in range(len(seen), len(steps)):
                if curve[i] < min(curve[:i]):
                    predicted = steps_to_reach(steps[: len(seen)], np.array(curve[: len(seen)]), curve[i])
                    if BUDGET < predicted < np.inf:
                        factors.append(np.log((steps[i] + 1) / (BUDGET + 1)) / np.log((predicted + 1) / (BUDGET + 1)))
    return {name: factors for name, factors in found.items() if factors}


def leave_one_out(by_swap: dict[str, list[float]]) -> tuple[list[float], float]:
    """The 5% and 95% quantiles over all swaps, and how often those of the other swaps cover a swap, mean over swaps."""
    covers = []
    for name, factors in by_swap.items():
        others = [f for other, values in by_swap.items() if other != name for f in values]
        low, high = np.quantile(others, [0.05, 0.95])
        covers.append(np.mean([low <= f <= high for f in factors]))
    every = np.quantile([f for values in by_swap.values() for f in values], [0.05, 0.95])
    return [round(float(q), 2) for q in every], round(float(np.mean(covers)), 4)


def summary() -> None:
    """Replay every swap and write decision_study.json."""
    rows, by_budget = [], []
    files = [
        (json.loads(f.with_suffix(".json").read_text()), load_file(f)) for f in sorted(CURVES.glob("*.safetensors"))
    ]
    for record, curves in files:
        row = replay(record, curves)
        rows.append(row | {"scratch_ratio": scratch_ratio(row)})
    mean = lambda values: round(float(np.mean(values)), 4) if values else None
    near = [
        row["scratch_ratio"]
        for row in rows
        if row["kind"] == "vae" and row["candidate"].split("/")[-1] in NEAR and row["scratch_ratio"] is not None
        if not row["steps"][row["truth"]] or row["steps"]["scratch"] or row["run_to"]["scratch"] >= RUN_ON
    ]
    for budget in (BUDGET // 2, BUDGET, 2 * BUDGET):
        said = [replay(record, curves, budget) for record, curves in files]
        told = [row["right"] for row in said if row["conclusive"]]
        open_ends = [row["right"] for row in said if not row["conclusive"]]
        by_budget.append(
            {"budget": budget, "conclusive": len(told), "right": sum(told), "open": len(open_ends)}
            | {"right_open": sum(open_ends), "right_of_conclusive": mean(told), "right_of_all": mean(told + open_ends)}
        )
    widths = [
        f["predicted_steps_high"] / max(f["predicted_steps_low"], 1)
        for row in rows
        for name, f in row["forecast"].items()
        if name in row["covered"] and f["predicted_steps_high"]
    ]
    stretch, left_out = leave_one_out(stretches(rows))
    found = {
        "swaps": rows,
        "decision_accuracy": mean([row["right"] for row in rows]),
        "by_budget": by_budget,
        "mean_regret": mean([row["regret"] for row in rows if row["regret"] is not None]),
        **ranks(rows),
        "interval_coverage": mean([c for row in rows for c in row["covered"].values()]),
        "stretch": stretch,
        "stretch_coverage_left_out": left_out,
        "interval_width": round(float(np.median(widths)), 1),
        "forecasts": sum(len(row["covered"]) for row in rows),
        "near": NEAR,
        "near_steps_ratio": mean(near),
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__}",
        "command": "python experiments/decision_study.py summary, after one `run` a swap",
    }
    (RESULTS / "decision_study.json").write_text(json.dumps(found, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['base']:14} {row['kind']:5} {row['candidate']:36} truth {row['truth']:16} said {row['recommended']:32} {row['right']} {row['regret']}"
        )
    print(json.dumps({k: v for k, v in found.items() if k != "swaps"}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("base")
    one.add_argument("kind", choices=("vae", "text"))
    one.add_argument("candidate")
    one.add_argument("--max-steps", type=int, default=500)
    one.add_argument("--far-steps", type=int, default=1500)
    one.add_argument("--scratch-steps", type=int, default=0, help="run scratch on until it is there, or so far")
    one.add_argument("--seed", type=int, default=0)
    scratch = commands.add_parser("scratch")
    scratch.add_argument("candidate")
    scratch.add_argument("--steps", type=int, default=1000)
    for trained in (one, scratch):
        trained.add_argument("--rates", type=lambda text: [float(t) for t in text.split(",")], default=[1.0, 0.25, 2.0])
    commands.add_parser("summary")
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"run": run, "scratch": run_scratch, "summary": lambda _: summary()}[args.command](args)


if __name__ == "__main__":
    main()
