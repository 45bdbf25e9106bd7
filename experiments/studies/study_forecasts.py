"""Forecasts of the decision study's races and what became of them: coverage and interval score."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import study_measures as measures
from study_curves import StudyRecord
from study_replay import AUTO, HORIZON, arrivals, draws_at, race_of, replay

from sanakit.swap.rungs import Rungs, fixed_rungs
from sanakit.swap.slope_law import SlopeLaw

BUDGETS = (50, 100, 200)
FIXED = {str(budget): fixed_rungs(budget) for budget in BUDGETS}
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
Laws = dict[str, SlopeLaw]  # by StudyRecord.swap, the law that a swap is judged by


@dataclass(frozen=True, kw_only=True)
class Made:
    """The forecast of one strategy after `step` steps of a race. shown: it ran to the race's end, so a user sees it.
    draws: (D,) steps to the target. arrival: true steps, None where it did not arrive until `run_to`."""

    record: StudyRecord
    name: str
    step: int
    shown: bool
    draws: np.ndarray
    arrival: float | None
    run_to: float

    @property
    def forecasted(self) -> measures.Forecasted:
        return measures.forecasted(self.record.swap, self.draws, self.arrival, self.run_to, HORIZON)

    def as_dict(self) -> dict[str, Any]:
        """All that a figure of forecasts reads; quantiles are None beyond every draw that arrives."""
        one = self.forecasted
        ends = [float(q) for q in np.quantile(self.draws, QUANTILES, method="inverted_cdf")]
        return {
            "swap": self.record.swap,
            "seed": self.record.seed,
            "name": self.name,
            "step": self.step,
            "shown": self.shown,
            "arrival": self.arrival,
            "run_to": self.run_to,
            "share": one.share,
            "censored": one.censored,
            "score": one.score,
            "quantiles": [round(end, 1) if np.isfinite(end) else None for end in ends],
        }


def forecasts_of(record: StudyRecord, law: SlopeLaw, plan: Rungs) -> list[Made]:
    """Of every strategy that trains, has not arrived by the race's end and was run further."""
    result = replay(record, law, plan).result
    running = {arm.strategy.name for arm in result.finalists}
    names = [arm.curve.name for arm in race_of(record) if arm.trained]
    needed, end, made = arrivals(record), result.step, []
    for name, draws in draws_at(record, law, names, end).items():
        arrival, run_to = needed[name], float(record.arms[name].curve.steps[-1])
        if run_to > end and (arrival is None or arrival > end):
            shown = name in running
            made.append(
                Made(record=record, name=name, step=end, shown=shown, draws=draws, arrival=arrival, run_to=run_to)
            )
    return made


def forecast_figures(records: Sequence[StudyRecord], laws: Laws, *, automatic: bool = False) -> list[dict[str, Any]]:
    """By length of the race: coverage and interval score of the forecasts. `shown`: of the strategies alone that ran to
    the race's end, whose forecasts a user sees. automatic: the race of automatic length too."""
    figures = []
    for name, plan in (FIXED | ({"auto": AUTO} if automatic else {})).items():
        made = [one for record in records for one in forecasts_of(record, laws[record.swap], plan)]
        every, shown = [one.forecasted for one in made], [one.forecasted for one in made if one.shown]
        race = "auto" if name == "auto" else int(name)
        figures.append({"race": race, **coverage_figures(every), "shown": coverage_figures(shown)})
    return figures


def coverage_figures(forecasts: Sequence[measures.Forecasted]) -> dict[str, Any]:
    """Censor-adjusted coverage of the 80% and 90% intervals and the score of the uncensored ones; None where there
    are none."""
    scored = [one for one in forecasts if one.score is not None]
    figures: dict[str, Any] = {"forecasts": len(forecasts), "censored": len(forecasts) - len(scored)}
    for level in (80, 90):
        covered = functools.partial(measures.coverage, level=level / 100)
        figures |= figure(f"coverage_{level}", forecasts if scored else [], covered)
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
