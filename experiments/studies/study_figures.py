"""Figures over the swaps of the decision study, and the constants of the forecast.

`decision_study.py summary` fits the law of sanakit/swap/slope_law.py to all curves that rules may be made from and
writes it to sanakit/swap/forecast.json. What is said of the law is measured on swaps that it had not seen: every swap
is replayed under the law of the others (leave one swap out), and once more under the law of the other base (leave one
base out). Figures go to decision_study.json.
"""

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
from study_forecasts import FIXED, Laws, forecast_figures
from study_plan import SWAPS
from study_replay import AUTO, Said, replay, row_of
from study_rows import RESULTS

from sanakit.swap.forecast import INTERVAL, TELLS
from sanakit.swap.rungs import Rungs
from sanakit.swap.slope_law import FILE, TAIL, SlopeLaw, law_record

NEAR = {swap.name for swap in SWAPS if swap.scratch == "near"}
RUN_ON = 2000  # steps of scratch that say something where it did not get there
COMMAND = "python experiments/studies/decision_study.py summary"
SURE = 0.9  # stated with this probability or more: none of these may be wrong
STATED = (0.0, 0.5, 0.7, 0.9, 1.0)  # ends of the bins of stated probabilities
LARGER = 1.5  # times the parameters of the smallest core: another size


def left_out(records: Sequence[StudyRecord], floors: dict[str, float], key: Callable[[StudyRecord], str]) -> Laws:
    """Of every swap, the law of the records that do not share its key."""
    laws: dict[str, SlopeLaw] = {}
    for value in sorted({key(record) for record in records}):
        laws[value] = fit_law([c for r in records if key(r) != value for c in r.curves()], floors)
    return {record.swap: laws[key(record)] for record in records}


def decisions(records: Sequence[StudyRecord], laws: Laws) -> dict[str, list[Said]]:
    """What races of FIXED length and of automatic length say of every record."""
    plans: dict[str, Rungs] = FIXED | {"auto": AUTO}
    return {name: [replay(record, laws[record.swap], plan) for record in records] for name, plan in plans.items()}


def decision_figures(records: Sequence[StudyRecord], said: dict[str, list[Said]]) -> list[dict[str, Any]]:
    """By length of the race: how many it could tell, how many of those and of all were right, cost over a race of
    100 steps, and the Brier score of its stated probability. sure: stated with SURE or more."""
    base = {id(record): one.spent for record, one in zip(records, said["100"], strict=True)}
    figures = []
    for name, ones in said.items():
        rows = list(zip(records, ones, strict=True))
        told = [row for row in rows if row[1].result.answer.told]
        sure = [one for _, one in told if one.result.answer.probability >= SURE]
        ratios = [one.spent / base[id(record)] for record, one in rows]
        stated, right = [one.result.answer.probability for _, one in rows], [one.right for _, one in rows]
        figures.append(
            {
                "race": name,
                "runs": len(rows),
                "told": len(told),
                "right_of_told": sum(one.right for _, one in told),
                "sure": len(sure),
                "right_of_sure": sum(one.right for one in sure),
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
                "brier_less_base_rate_interval": interval_of(rows, lambda s: brier_of(s) - base_rate_of(s)),
                "ends": {str(end): sum(one.result.step == end for one in ones) for end in AUTO.ends},
            }
        )
    return figures


def interval_of(rows: Sequence[tuple[StudyRecord, Said]], measure: Callable[[list[Any]], float]) -> list[float]:
    return measures.bootstrap(rows, lambda row: row[0].swap, measure)


def brier_of(rows: Sequence[tuple[StudyRecord, Said]]) -> float:
    return measures.brier([one.result.answer.probability for _, one in rows], [one.right for _, one in rows])


def base_rate_of(rows: Sequence[tuple[StudyRecord, Said]]) -> float:
    return measures.always_base_rate([one.right for _, one in rows])


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


def of_largest_core(records: Sequence[StudyRecord]) -> list[bool]:
    """Which of them were run on the largest core."""
    sizes = [record.core["parameters"] for record in records]
    return [size * LARGER > max(sizes) for size in sizes]


def largest_core(records: Sequence[StudyRecord], floors: dict[str, float]) -> dict[str, Any] | None:
    """Forecasts of the curves of the largest core, by the law of the smaller ones; None where one size alone was
    run."""
    are_large = of_largest_core(records)
    large, smaller = (
        [r for r, is_large in zip(records, are_large, strict=True) if is_large is side] for side in (True, False)
    )
    return larger_figures(large, smaller, floors) if smaller else None


def larger_figures(
    large: Sequence[StudyRecord], smaller: Sequence[StudyRecord], floors: dict[str, float]
) -> dict[str, Any]:
    """What races on the larger core say under the law of the smaller ones, and what it was worth."""
    law = fit_law([curve for record in smaller for curve in record.curves()], floors)
    laws = {record.swap: law for record in large}
    return {
        "parameters": max(record.core["parameters"] for record in large),
        "swaps": len({record.swap for record in large}),
        "decisions": decision_figures(large, decisions(large, laws)),
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


def near_figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Share of scratch's steps that near swaps took, of those in which scratch was run on: mean and largest; and how
    many were not reached, which have no share."""
    near = [
        row
        for row in rows
        if f"{row['base']} vae {row['candidate'].split('/')[-1]}" in NEAR and "scratch" in row["steps"]
        if row["steps"]["scratch"] or row["run_to"]["scratch"] >= RUN_ON or row["steps"].get(row["truth"]) == 0
    ]
    shares = [row["scratch_ratio"] for row in near if row["scratch_ratio"] is not None]
    return {
        "near_steps_ratio": round(float(np.mean(shares)), 4) if shares else None,
        "near_steps_most": round(max(shares), 4) if shares else None,
        "near_run_on": RUN_ON,
        "near_not_reached": len(near) - len(shares),
    }


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
        "near": sorted(NEAR),
        **near_figures(rows),
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
