"""What `decision_study.py evaluate` says of the evaluation third, which is read once: everything that may be asked of
it. By kind of swap, base and first seed, every answer and every forecast alone, the larger core under the law of the
smaller ones, and the curves of every arm.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from study_curves import StudyRecord, fingerprint
from study_figures import (
    decision_figures,
    decisions,
    larger_figures,
    of_largest_core,
    stated_probabilities,
)
from study_forecasts import FIXED, Laws, forecast_figures, forecasts_of
from study_replay import AUTO, Said, open_to, row_of

from sanakit.swap.calibration import RaceFacts, calibrated_for, why_extrapolated
from sanakit.swap.slope_law import packaged, packaged_law

ALONE = (
    "swaps",
    "answers",
    "every_forecast",
    "every_arm",
    "constants",
)  # keys of the verdict that are too long to print


def require_constants(fitting: Sequence[StudyRecord]) -> None:
    """Refuse constants that were not fitted to the fitting runs as they are."""
    if packaged()["data"] != fingerprint(fitting):
        raise SystemExit("the constants are of other runs: `decision_study.py summary` first")


def require_unit(records: Sequence[StudyRecord]) -> None:
    """Refuse to judge runs in another unit than the constants' own: their probabilities are extrapolated."""
    others = sorted({record.kind for record in records if record.measure != calibrated_for(record.kind)["measure"]})
    if others:
        raise SystemExit(
            f"runs of {' and '.join(others)} are in another unit than the constants: more fitting runs, then summary"
        )


def verdict_of(records: Sequence[StudyRecord], fitting: Sequence[StudyRecord]) -> dict[str, Any]:
    """Everything that study_verdict.json holds of these runs. fitting: that the constants were fitted to."""
    laws: Laws = {record.swap: packaged_law() for record in records}
    said = decisions(records, laws)
    groups = {
        name: figures_of([records[i] for i in places], said_at(said, places), laws)
        for name, places in groups_of(records).items()
    }
    return {
        "constants": packaged(),
        "runs": len(records),
        "swap_count": len({record.swap for record in records}),
        "goals": goals(groups["first seeds"]),
        **figures_of(records, said, laws),
        "groups": groups,
        "largest_core": on_larger_core(records, fitting),
        "answers": [
            answer_row(name, record, one)
            for name, ones in said.items()
            for record, one in zip(records, ones, strict=True)
        ],
        "every_forecast": [
            {"race": name, **made.as_dict()}
            for name, plan in (FIXED | {"auto": AUTO}).items()
            for record in records
            for made in forecasts_of(record, laws[record.swap], plan)
        ],
        "swaps": [
            row_of(record, one)
            | {"core": record.core, "measure": record.measure, "level": round(record.level, 5)}
            | {"extrapolated": extrapolated(record)}
            for record, one in zip(records, said["auto"], strict=True)
        ],
    }


def figures_of(records: Sequence[StudyRecord], said: dict[str, list[Said]], laws: Laws) -> dict[str, Any]:
    return {
        "decisions": decision_figures(records, said),
        "stated": stated_probabilities(said),
        "forecasts": forecast_figures(records, laws, automatic=True),
    }


def goals(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """What was to be reached by races of automatic length, as docs/decision-study.md states it, and what was."""
    auto = next(row for row in figures["decisions"] if row["race"] == "auto")
    shown = next(row["shown"] for row in figures["forecasts"] if row["race"] == "auto")
    runs, told, sure = auto["runs"], auto["told"], auto["sure"]
    wrong, sure_wrong = told - auto["right_of_told"], sure - auto["right_of_sure"]
    low, high = shown["coverage_80_interval"] or (float("nan"), float("nan"))
    covered = "too few forecasts" if shown["coverage_80"] is None else f"{shown['coverage_80']:.2f}"
    covered += f" ({low:.2f} to {high:.2f})"
    score, base_rate = auto["brier"], auto["brier_of_base_rate"]
    rows = [
        ("swaps", "at least 14", f"{runs}", runs >= 14),
        ("told (P of .7 or more)", "12 of 14", f"{told} of {runs}", told * 14 >= runs * 12),
        ("told and wrong", "1 of 14 at most", f"{wrong} of {told}", wrong * 14 <= runs),
        ("told with P of .9 or more, and wrong", "none", f"{sure_wrong} of {sure}", not sure_wrong),
        ("mean cost over a race of 100 steps", "at most 1.1", f"{auto['mean_cost']:.2f}", auto["mean_cost"] <= 1.1),
        ("80% intervals shown cover", ".80 in their bootstrap interval", covered, low <= 0.8 <= high),
        ("Brier score", "below the base rate's", f"{score:.3f}, base rate's {base_rate:.3f}", score < base_rate),
    ]
    return [dict(zip(("asked", "goal", "measured", "reached"), row, strict=True)) for row in rows]


def groups_of(records: Sequence[StudyRecord]) -> dict[str, list[int]]:
    """By name of a group, the places of its records; none that is empty."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        names = [record.kind, record.base, *([] if extrapolated(record) else ["calibrated"])]
        if not record.seed:
            names += ["first seeds", f"{record.kind}, first seeds"]
        for name in names:
            groups[name].append(place)
    return dict(groups)


def said_at(said: dict[str, list[Said]], places: Sequence[int]) -> dict[str, list[Said]]:
    return {race: [ones[i] for i in places] for race, ones in said.items()}


def extrapolated(record: StudyRecord) -> str:
    """Why the stated probability is not calibrated for this core and unit; empty where it is."""
    return why_extrapolated(record.kind, RaceFacts(**record.core, measure=record.measure))


def on_larger_core(records: Sequence[StudyRecord], fitting: Sequence[StudyRecord]) -> dict[str, Any] | None:
    """Runs on the largest core under the law of the fitting runs on smaller ones; None where there are none of
    either, or none of their kind."""
    are_large = of_largest_core([*records, *fitting])
    large = [r for r, is_large in zip(records, are_large, strict=False) if is_large]
    smaller = [r for r, is_large in zip(fitting, are_large[len(records) :], strict=True) if not is_large]
    large = [r for r in large if r.kind in {other.kind for other in smaller}]
    return larger_figures(large, smaller, packaged()["law"]["floors"]) if large else None


def answer_row(race: str, record: StudyRecord, said: Said) -> dict[str, Any]:
    """What one race said, and whether it was right. open: as `open_to`."""
    answer = said.result.answer
    return {
        "race": race,
        "swap": record.swap,
        "seed": record.seed,
        "name": answer.name,
        "in_sight": answer.in_sight,
        "probability": answer.probability,
        "told": answer.told,
        "right": said.right,
        "open": open_to(record, answer.name if answer.in_sight else ""),
        "step": said.result.step,
        "spent": round(said.spent, 2),
    }


def arms_of(row: dict[str, Any]) -> dict[str, Any]:
    """What a run measured of every arm, those that do not race with the others, without errors by image."""
    keys = ("steps", "mean", "rates", "trained_parameters", "diverged")
    arms = {name: {key: arm[key] for key in keys if key in arm} for name, arm in row["arms"].items()}
    return {"run": row["run"], "step_cost": row["step_cost"], "cost_once": row["cost_once"], "arms": arms}
