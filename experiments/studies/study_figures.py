"""Figures over the swaps of the decision study, and the constants of the forecast.

`decision_study.py summary` fits the law of sanakit/swap/slope_law.py to all curves that rules may be made from and
writes it to sanakit/swap/forecast.json. What is said of the law is measured on swaps that it had not seen: every swap
is replayed under the law of the others (leave one swap out), and once more under the law of the other base (leave one
base out). Figures go to decision_study.json.
"""

import functools
import itertools
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import study_measures as measures
import torch
from scipy.stats import spearmanr
from study_curves import StudyRecord, calibrated_for, fingerprint, read_records
from study_fit import FLOORS, RIDGE, choose_floors, fit_law
from study_replay import AUTO, HORIZON, Said, arrivals, draws_at, race_of, replay, row_of
from study_rows import RESULTS

from sanakit.swap.forecast import INTERVAL, TELLS
from sanakit.swap.rungs import Rungs, fixed_rungs
from sanakit.swap.slope_law import FILE, TAIL, SlopeLaw, law_record

BUDGETS = (50, 100, 200)
NEAR = ("near-dc", "moved-dc", "pca-f16c24", "pca-f16c48", "pca-rotated")
RUN_ON = 2000  # steps of scratch that say something where it did not get there
COMMAND = "python experiments/studies/decision_study.py summary"
STATED = (0.0, 0.5, 0.7, 0.9, 1.0)  # ends of the bins of stated probabilities
LARGER = 1.5  # times the parameters of the smallest core: another size
Laws = dict[str, SlopeLaw]  # by StudyRecord.swap, the law that a swap is judged by


def left_out(records: Sequence[StudyRecord], floors: dict[str, float], key: Callable[[StudyRecord], str]) -> Laws:
    """Of every swap, the law of the records that do not share its key."""
    laws: dict[str, SlopeLaw] = {}
    for value in sorted({key(record) for record in records}):
        laws[value] = fit_law([c for r in records if key(r) != value for c in r.curves()], floors)
    return {record.swap: laws[key(record)] for record in records}


def decisions(records: Sequence[StudyRecord], laws: Laws) -> dict[str, list[Said]]:
    """What races of BUDGETS steps and of automatic length say of every record."""
    plans: dict[str, Rungs] = {str(budget): fixed_rungs(budget) for budget in BUDGETS} | {"auto": AUTO}
    return {name: [replay(record, laws[record.swap], plan) for record in records] for name, plan in plans.items()}


def decision_figures(records: Sequence[StudyRecord], said: dict[str, list[Said]]) -> list[dict[str, Any]]:
    """By length of the race: how many it could tell, how many of those and of all were right, cost over a race of
    100 steps, and the Brier score of its stated probability."""
    base = {id(record): one.spent for record, one in zip(records, said["100"], strict=True)}
    figures = []
    for name, ones in said.items():
        rows = list(zip(records, ones, strict=True))
        told = [row for row in rows if row[1].result.answer.told]
        ratios = [one.spent / base[id(record)] for record, one in rows]
        stated, right = [one.result.answer.probability for _, one in rows], [one.right for _, one in rows]
        figures.append(
            {
                "race": name,
                "runs": len(rows),
                "told": len(told),
                "right_of_told": sum(one.right for _, one in told),
                "right": sum(right),
                "right_interval": interval_of(rows, lambda sample: np.mean([one.right for _, one in sample])),
                "told_interval": interval_of(rows, lambda sample: np.mean([o.result.answer.told for _, o in sample])),
                "mean_cost": round(float(np.mean(ratios)), 3),
                "median_cost": round(float(np.median(ratios)), 3),
                "cost_interval": interval_of(
                    rows, lambda sample: np.mean([one.spent / base[id(record)] for record, one in sample])
                ),
                "brier": round(measures.brier(stated, right), 4),
                "brier_interval": interval_of(rows, brier_of),
                "brier_of_base_rate": round(measures.always_base_rate(right), 4),
                "ends": {str(end): sum(one.result.step == end for one in ones) for end in AUTO.ends},
            }
        )
    return figures


def interval_of(rows: Sequence[tuple[StudyRecord, Said]], measure: Callable[[list[Any]], float]) -> list[float]:
    return measures.bootstrap(rows, lambda row: row[0].swap, measure)


def brier_of(rows: Sequence[tuple[StudyRecord, Said]]) -> float:
    return measures.brier([one.result.answer.probability for _, one in rows], [one.right for _, one in rows])


def stated_probabilities(said: dict[str, list[Said]]) -> list[dict[str, Any]]:
    """What was stated against what happened, over the races of every length; a swap counts once for each."""
    rows = [(one.result.answer.probability, one.right) for ones in said.values() for one in ones]
    bins = []
    for low, high in itertools.pairwise(STATED):
        inside = [(p, right) for p, right in rows if low <= p < high or p == high == STATED[-1]]
        if inside:
            stated, happened = (float(np.mean(side)) for side in zip(*inside, strict=True))
            bins.append(
                {
                    "from": low,
                    "to": high,
                    "answers": len(inside),
                    "stated": round(stated, 3),
                    "right": round(happened, 3),
                }
            )
    return bins


def forecast_figures(records: Sequence[StudyRecord], laws: Laws) -> list[dict[str, Any]]:
    """By length of the race: coverage and interval score of the forecasts of every arm that trains, has not arrived
    by then and was run further. `shown`: of the arms alone that ran to the race's end, whose forecasts a user
    sees."""
    figures = []
    for budget in BUDGETS:
        every, shown = [], []
        for record in records:
            running = {
                arm.strategy.name for arm in replay(record, laws[record.swap], fixed_rungs(budget)).result.finalists
            }
            names = [arm.curve.name for arm in race_of(record) if arm.trained]
            needed, draws = arrivals(record), draws_at(record, laws[record.swap], names, budget)
            for name, steps in draws.items():
                arrival, run_to = needed[name], float(record.arms[name].curve.steps[-1])
                if run_to > budget and (arrival is None or arrival > budget):
                    one = measures.forecasted(record.swap, steps, arrival, run_to, HORIZON)
                    every.append(one)
                    shown += [one] if name in running else []
        figures.append({"race": budget, **coverage_figures(every), "shown": coverage_figures(shown)})
    return figures


def coverage_figures(forecasts: Sequence[measures.Forecasted]) -> dict[str, Any]:
    """Censor-adjusted coverage of the 80% and 90% intervals and the score of the uncensored ones; None where there
    are none."""
    scored = [one for one in forecasts if one.score is not None]
    figures: dict[str, Any] = {"forecasts": len(forecasts), "censored": len(forecasts) - len(scored)}
    for level in (80, 90):
        figures |= figure(f"coverage_{level}", forecasts, functools.partial(measures.coverage, level=level / 100))
    return figures | figure("interval_score", scored, mean_score)


def figure(
    name: str, forecasts: Sequence[measures.Forecasted], measure: Callable[[Sequence[measures.Forecasted]], float]
) -> dict[str, Any]:
    if not forecasts:
        return {name: None, f"{name}_interval": None}
    interval = measures.bootstrap(forecasts, lambda one: one.swap, measure)
    return {name: round(measure(forecasts), 3), f"{name}_interval": interval}


def mean_score(forecasts: Sequence[measures.Forecasted]) -> float:
    return float(np.mean([one.score for one in forecasts if one.score is not None]))


def largest_core(records: Sequence[StudyRecord], floors: dict[str, float]) -> dict[str, Any] | None:
    """Forecasts of the curves of the largest core, by the law of the smaller ones; None where one size alone was
    run."""
    sizes = [record.core["parameters"] for record in records]
    large = [record for record in records if record.core["parameters"] * LARGER > max(sizes)]
    smaller = [record for record in records if record not in large]
    if not smaller:
        return None
    law = fit_law([curve for record in smaller for curve in record.curves()], floors)
    laws = {record.swap: law for record in large}
    said = decisions(large, laws)
    return {
        "parameters": max(sizes),
        "swaps": len({record.swap for record in large}),
        "decisions": decision_figures(large, said),
        "forecasts": forecast_figures(large, laws),
    }


def same_step_errors(record: StudyRecord, end: int) -> tuple[list[float], list[float]] | None:
    """The trained strategies' errors at the end of a race and at the last step that all of them ran; None where that
    is no further."""
    trained = [arm.curve for arm in record.arms.values() if arm.trained]
    last = min(curve.steps[-1] for curve in trained)
    if len(trained) < 3 or last <= end:
        return None
    return tuple([float(c.errors[c.steps <= step][-1]) for c in trained] for step in (end, last))  # type: ignore[return-value]


def ranks(records: Sequence[StudyRecord], end: int = 100) -> dict[str, float | None]:
    """Spearman of a race of 100 steps and the end: of the strategies of one swap (mean over swaps), of all
    strategies of all swaps, and of the swaps by their best strategy, which is how candidates are compared."""
    pairs = [pair for record in records if (pair := same_step_errors(record, end))]
    if len(pairs) < 3:
        return dict.fromkeys(("spearman_smoke_full", "spearman_pooled", "spearman_candidates"))

    def rank(smoke: Any, full: Any) -> float:
        return float(spearmanr(smoke, full)[0])

    spearman = {
        "spearman_smoke_full": np.mean([rank(*pair) for pair in pairs]),
        "spearman_pooled": rank(*(np.concatenate(side) for side in zip(*pairs, strict=True))),
        "spearman_candidates": rank(*([min(errors) for errors in side] for side in zip(*pairs, strict=True))),
    }
    return {name: round(float(value), 4) for name, value in spearman.items()}


def scratch_ratio(row: dict[str, Any]) -> float | None:
    """Steps of the cheapest sufficient strategy over those of scratch, or of as many as scratch was run for in vain:
    then an upper bound. None where scratch was not run."""
    if row["truth"] == "not reached" or "scratch" not in row["steps"]:
        return None
    return float(row["steps"][row["truth"]] / (row["steps"]["scratch"] or row["run_to"]["scratch"]))


def near_ratio(rows: Sequence[dict[str, Any]]) -> float | None:
    near = [
        row["scratch_ratio"]
        for row in rows
        if row["kind"] == "vae" and row["candidate"].split("/")[-1] in NEAR and row["scratch_ratio"] is not None
        if not row["steps"][row["truth"]] or row["steps"]["scratch"] or row["run_to"]["scratch"] >= RUN_ON
    ]
    return round(float(np.mean(near)), 4) if near else None


def write_constants(records: Sequence[StudyRecord], law: SlopeLaw) -> dict[str, Any]:
    """forecast.json of the package."""
    constants = {
        "recipe": f"experiments/studies/study_fit.py: ridge {RIDGE:g}, t with {TAIL} degrees of freedom, "
        f"floors of {list(FLOORS)}",
        "command": COMMAND,
        "data": fingerprint(records),
        "curves": sum(len(record.curves()) for record in records),
        "runs": len(records),
        "swaps": len({record.swap for record in records}),
        "calibrated_for": calibrated_for(records),
        "law": law_record(law),
    }
    FILE.write_text(json.dumps(constants, indent=1) + "\n", encoding="utf-8")
    return constants


def evaluate_law(
    records: Sequence[StudyRecord], floors: dict[str, float], key: str
) -> tuple[dict[str, Any], list[Said]]:
    """Figures of decisions and forecasts under laws that leave out a swap or a base, and what the races of automatic
    length said."""
    laws = left_out(records, floors, lambda record: str(getattr(record, key)))
    said = decisions(records, laws)
    figures = {
        "decisions": decision_figures(records, said),
        "stated": stated_probabilities(said),
        "forecasts": forecast_figures(records, laws),
    }
    return figures, said["auto"]


def summarise(records: Sequence[StudyRecord]) -> dict[str, Any]:
    """Everything that decision_study.json holds."""
    every = [curve for record in records for curve in record.curves()]
    floors = choose_floors(every)
    constants = write_constants(records, fit_law(every, floors))
    by_swap, said = evaluate_law(records, floors, "swap")
    rows = [row_of(record, one) for record, one in zip(records, said, strict=True)]
    rows = [row | {"scratch_ratio": scratch_ratio(row)} for row in rows]
    return {
        "swaps": rows,
        "constants": {key: value for key, value in constants.items() if key != "law"} | {"floors": floors},
        "interval": INTERVAL,
        "tells": TELLS,
        "leave_one_swap_out": by_swap,
        "leave_one_base_out": evaluate_law(records, floors, "base")[0],
        "largest_core": largest_core(records, floors),
        **ranks(records),
        "near": NEAR,
        "near_steps_ratio": near_ratio(rows),
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__}",
        "command": COMMAND,
    }


def summary(done: set[str], results: Path = RESULTS) -> None:
    """Fit, replay, write forecast.json and decision_study.json, and print the figures."""
    figures = summarise(read_records(done, results))
    (results / "decision_study.json").write_text(json.dumps(figures, indent=1) + "\n")
    for row in figures["swaps"]:
        print(
            f"{row['base']:14} {row['kind']:12} {row['candidate']:36} truth {row['truth']:16} "
            f"said {row['recommended']:32} "
            f"P {row['probability']:.2f} after {row['race_steps']} {'right' if row['right'] else 'WRONG'}"
        )
    print(json.dumps({k: v for k, v in figures.items() if k != "swaps"}, indent=1))
