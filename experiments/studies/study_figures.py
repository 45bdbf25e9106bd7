"""Figures over the swaps of the earlier decision study: decisions, rank agreement, share of scratch's steps, stretch.

`decision_study.py summary` writes them to decision_study.json from the curves in experiments/results/decision_study.
That study ran every strategy of 25 swaps to 500 steps and further by hand, evaluated on the first rows of the data; the
runs of the study that follows are in study_run.py.
"""

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from scipy.stats import spearmanr
from study_replay import BUDGET, replay

from sanakit.swap.forecast import steps_to_reach

RESULTS = Path("experiments/results")
CURVES = RESULTS / "decision_study"
NEAR = ("near-dc", "moved-dc", "pca-f16c24", "pca-f16c48", "pca-rotated")
RUN_ON = 2000  # steps of scratch that say something where it did not get there


def same_step_errors(row: dict[str, Any]) -> tuple[list[float], list[float]] | None:
    """The trained strategies' errors at the end of smoke and at the last step that all of them ran; None where that is
    no further."""
    trained = [c for c in row["curves"].values() if len(c[0]) > 1]
    last = min(c[0][-1] for c in trained)
    if len(trained) < 3 or last <= BUDGET:
        return None

    def value(curve, step):
        return curve[1][max(i for i, s in enumerate(curve[0]) if s <= step)]

    return [value(c, BUDGET) for c in trained], [value(c, last) for c in trained]


def ranks(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Spearman of smoke and full: of the strategies of one swap (mean over swaps), of all strategies of all swaps, and
    of the swaps by their best strategy, which is how candidates are compared."""
    pairs = [pair for row in rows if (pair := same_step_errors(row))]
    if len(pairs) < 3:
        return dict.fromkeys(("spearman_smoke_full", "spearman_pooled", "spearman_candidates"))

    def rank(smoke, full):
        return float(spearmanr(smoke, full)[0])

    spearman = {
        "spearman_smoke_full": np.mean([rank(*pair) for pair in pairs]),
        "spearman_pooled": rank(*(np.concatenate(side) for side in zip(*pairs, strict=True))),
        "spearman_candidates": rank(*([min(errors) for errors in side] for side in zip(*pairs, strict=True))),
    }
    return {name: round(float(value), 4) for name, value in spearman.items()}


def scratch_ratio(row: dict[str, Any]) -> float | None:
    """Steps of the cheapest sufficient strategy over those of scratch, or of as many as scratch was run for in vain:
    then an upper bound."""
    if row["truth"] == "not reached":
        return None
    return row["steps"][row["truth"]] / (row["steps"]["scratch"] or row["run_to"]["scratch"])


def stretches(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """By swap: log(true steps / BUDGET) over log(forecast steps / BUDGET), the target any error that a strategy reached
    after the race. What STRETCH of swap/forecast.py is made of."""
    stretch_factors: dict[str, list[float]] = {}
    for row in rows:
        factors = stretch_factors.setdefault(f"{row['base']} {row['candidate']} {row['seed']}", [])
        for steps, curve in row["curves"].values():
            seen = [i for i, s in enumerate(steps) if s <= BUDGET]
            for i in range(len(seen), len(steps)):
                if curve[i] < min(curve[:i]):
                    predicted = steps_to_reach(steps[: len(seen)], np.array(curve[: len(seen)]), curve[i])
                    if BUDGET < predicted < np.inf:
                        factors.append(np.log((steps[i] + 1) / (BUDGET + 1)) / np.log((predicted + 1) / (BUDGET + 1)))
    return {name: factors for name, factors in stretch_factors.items() if factors}


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

    def mean(values):
        return round(float(np.mean(values)), 4) if values else None

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
    figures = {
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
        "command": "python experiments/studies/decision_study.py summary, after one `run` a swap",
    }
    (RESULTS / "decision_study.json").write_text(json.dumps(figures, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['base']:14} {row['kind']:5} {row['candidate']:36} truth {row['truth']:16} said "
            f"{row['recommended']:32} {row['right']} {row['regret']}"
        )
    print(json.dumps({k: v for k, v in figures.items() if k != "swaps"}, indent=1))
