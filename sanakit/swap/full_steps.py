"""How many steps stage full takes where the configuration leaves it to the race: the 80th percentile of its forecast.

At the median half of the runs would stop too early; the late end of the interval would make most of them too long. The
forecast states the median and the two ends of an interval; between them the logarithm of steps is taken as normal.
"""

import math
import sys
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from sanakit.config import Config
from sanakit.decision.next_step import PERCENTILE
from sanakit.distributed import is_main
from sanakit.errors import SanakitError
from sanakit.reporting.page import duration

OWN_NUMBER = "Name a number: `sanakit validate --stage full --run-dir RUN --set train.max_steps=N`."
INTERVAL = 0.9  # of forecasts of earlier versions, which do not state it
HORIZON = 2000  # steps, where strategy.json does not state it


def decide_steps(config: Config, raced: Mapping[str, Any], *, run_dir: str) -> Config:
    """The configuration with `train.max_steps`, taken from the race where it was not set; says the number with its
    hours before anything is trained. raced: strategy.json, empty where no race was run. Raises SK0513."""
    if config.train.max_steps is not None:
        return config
    steps, rate = percentile_steps(raced, run_dir=run_dir, horizon=horizon_of(config, raced))
    best = next(row for row in raced["candidates"] if row["name"] == raced["recommended"])
    if is_main() and best.get("trained_parameters") != 0:
        hours = f", about {duration(steps * rate)} on this machine" if rate else ""
        told = f"{steps:,} steps of {raced['recommended']}, the 80th percentile of the race's forecast{hours}"
        print(f"full: {told}; --set train.max_steps=N takes another number", file=sys.stderr)
    return config.model_copy(update={"train": config.train.model_copy(update={"max_steps": steps})})


def with_steps(config: Config, raced: Mapping[str, Any]) -> Config:
    """As `decide_steps`, in silence; the configuration itself where no number can be told."""
    if config.train.max_steps is not None:
        return config
    try:
        steps, _ = percentile_steps(raced, run_dir="", horizon=horizon_of(config, raced))
    except SanakitError:
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"max_steps": steps})})


def percentile_steps(raced: Mapping[str, Any], *, run_dir: str, horizon: int) -> tuple[int, float]:
    """Steps and seconds a step of the recommended strategy. Raises SK0513 where no number can be told."""
    name = raced.get("recommended")
    best = next((row for row in raced.get("candidates") or [] if name and row["name"] == name), None)
    fix = OWN_NUMBER.replace("RUN", run_dir)
    if best is None:
        raise SanakitError("SK0513", "train.max_steps is not set and no race recommends a strategy", fix=fix)
    middle, late = best.get("predicted_steps"), best.get("predicted_steps_high")
    if middle is None:
        raise SanakitError("SK0513", f"{name} is recommended, the base's quality is not in sight of it", fix=fix)
    if late is None:
        raise SanakitError("SK0513", f"{name}: about {middle:,.0f} steps, and the forecast has no late end", fix=fix)
    steps = max(1, math.ceil(percentile(middle, late, best.get("interval") or INTERVAL)))
    if steps > horizon:
        forecast = f"{name}: {steps:,} steps at the 80th percentile, smoke.horizon is {horizon:,}"
        raise SanakitError("SK0513", forecast, fix=fix)
    return steps, float(best.get("seconds_per_step") or 0.0)


def percentile(middle: float, late: float, interval: float) -> float:
    """The 80th percentile of a log-normal with this median, whose central interval ends at `late`."""
    if late <= middle:  # the arrival was measured
        return middle
    normal = NormalDist()
    share = normal.inv_cdf(PERCENTILE) / normal.inv_cdf((1 + interval) / 2)
    low = math.log(middle + 1)
    return math.exp(low + share * (math.log(late + 1) - low)) - 1


def horizon_of(config: Config, raced: Mapping[str, Any]) -> int:
    """`smoke.horizon` where it is set, else what the race was asked within."""
    return int(config.smoke.horizon or raced.get("horizon") or HORIZON)
