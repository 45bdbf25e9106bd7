"""The forecast: its law, the answer of a race, how far it is calibrated, and what is said of it. No torch is needed."""

import subprocess
import sys

import numpy as np
import pytest

from sanakit.reporting.ci import share
from sanakit.reporting.strategies import chosen_word, race_answer
from sanakit.swap.calibration import RaceFacts, calibrated_for, why_extrapolated
from sanakit.swap.forecast import answer_of, forecast_from
from sanakit.swap.slope_law import (
    DRAWS,
    OFFSET,
    SCOPES,
    Curve,
    SlopeLaw,
    draw_arrivals,
    features,
    law_from,
    law_record,
    measured_arrival,
    packaged,
    packaged_law,
)

STEPS = np.array([0.0, 12, 25, 50, 100])


def curve_of(slope, name="finetune", scope="core", floor=0.95, start=1.5):
    """Excess over the floor falls exactly as a power of step + OFFSET."""
    errors = floor + (start - floor) * (OFFSET / (STEPS + OFFSET)) ** slope
    return Curve(name=name, scope=scope, rate=1.0, steps=STEPS, errors=errors)


def exact_law(correlation=0.5, noise=1e-9, spread=(1e-9, 0.0)):
    """The slope that follows is the last one that was seen, and there is next to no doubt about it."""
    count = len(features(curve_of(0.3), "vae", 0.95, 1.05))
    theta = np.zeros(count)
    theta[1] = 1.0
    kinds = {"vae": noise, "text_encoder": noise}
    groups = ("trained", "fresh")
    return SlopeLaw(
        floors={"vae": 0.95, "text_encoder": 0.95},
        theta=dict.fromkeys(groups, theta),
        noise=dict.fromkeys(groups, kinds),
        spread=dict.fromkeys(groups, spread),
        correlation=correlation,
    )


def test_an_exact_law_is_followed_to_the_target():
    """0.55 (10 / (s + 10))^0.3 = 0.3 at s = 65.4; = 0.1 at s = 2926.8."""
    for target, steps in ((1.25, 10 * (0.55 / 0.3) ** (1 / 0.3) - 10), (1.05, 10 * 5.5 ** (1 / 0.3) - 10)):
        draws = draw_arrivals(exact_law(), [curve_of(0.3)], target, "vae")["finetune"]
        assert draws.shape == (DRAWS,)
        rtol = 0.05 if steps < 100 else 1e-4  # it was measured: by the line between two evaluations in log steps
        np.testing.assert_allclose(draws, steps, rtol=rtol)
    assert measured_arrival(STEPS, np.array([2.0, 1.8, 1.4, 1.2, 1.0]), 1.4) == pytest.approx(25)
    assert measured_arrival(STEPS, np.array([1.0, 2, 2, 2, 2]), 1.4) == 0
    assert measured_arrival(STEPS, np.full(5, 2.0), 1.4) is None


@pytest.mark.parametrize("slope", [0.0, -0.2], ids=["flat", "rising"])
def test_a_curve_that_does_not_fall_never_arrives(slope):
    draws = draw_arrivals(exact_law(), [curve_of(slope)], 1.05, "vae")["finetune"]
    forecasted = forecast_from(draws, 2000, reached=False)
    assert (
        np.isinf(draws).mean() >= 0.4 and forecasted.steps == np.inf and forecasted.as_dict()["predicted_steps"] is None
    )
    alone = Curve(name="align", scope="interface", rate=1.0, steps=np.zeros(1), errors=np.array([1.4]))
    nothing = forecast_from(draw_arrivals(exact_law(), [alone], 1.05, "vae")["align"], 2000, reached=False)
    assert (nothing.steps, nothing.low, nothing.high, nothing.within) == (np.inf, np.inf, np.inf, 0.0)


def test_doubt_widens_the_interval_and_no_end_lies_before_the_race():
    ends = []
    for spread in (0.01, 0.1):
        draws = draw_arrivals(exact_law(spread=(spread, 0.0)), [curve_of(0.3)], 1.15, "vae")["finetune"]
        ends.append(np.quantile(draws, [0.1, 0.5, 0.9]))
        assert draws.min() >= 100
    assert ends[1][0] < ends[0][0] < ends[0][1] < ends[0][2] < ends[1][2]
    np.testing.assert_allclose(ends[1][1], ends[0][1], rtol=0.05)


def test_arms_of_a_race_err_together_and_an_arm_draws_the_same_in_any_company():
    law = exact_law(spread=(0.015, 0.0))
    arms = [curve_of(0.3), curve_of(0.28, name="lora", scope="lora"), curve_of(0.3, name="distill", scope="teacher")]
    draws = draw_arrivals(law, arms, 1.15, "vae")
    together, apart = (
        np.corrcoef(np.log(draws["finetune"]), np.log(draws[name]))[0, 1] for name in ("lora", "distill")
    )
    assert 0.4 < together < 0.6 and abs(apart) < 0.1
    assert np.array_equal(draw_arrivals(law, arms[:1], 1.15, "vae")["finetune"], draws["finetune"])
    assert not np.array_equal(draw_arrivals(law, arms[:1], 1.15, "vae", seed=1)["finetune"], draws["finetune"])


def cost_of_steps(name, steps):
    return np.where(np.isfinite(steps), steps, 0.0)


def test_the_answer_is_the_strategy_within_a_tenth_of_the_cheapest_in_most_draws():
    draws = {"a": np.array([100.0] * 6 + [300] * 4), "b": np.array([104.0] * 8 + [900] * 2), "c": np.full(10, 90.0)}
    answer = answer_of({n: draws[n] for n in "ab"}, cost_of_steps, ["a", "b"], horizon=2000, step=1.0)
    assert (answer.name, answer.in_sight, answer.probability, answer.told) == ("a", True, 0.8, True)
    answer = answer_of(draws, cost_of_steps, ["a", "b"], horizon=2000, step=1.0)
    assert answer.probability == 0 and not answer.told, "an arm that was dropped may be cheaper"
    alike = {"a": np.zeros(4), "b": np.zeros(4)}
    assert answer_of(alike, cost_of_steps, ["b", "a"], horizon=2000, step=1.0).name == "b", "the first of two alike"


def test_not_in_sight_is_as_sure_as_that_nobody_arrives():
    draws = {"a": np.array([np.inf] * 7 + [500.0] * 3), "dropped": np.array([100.0] * 2 + [np.inf] * 8)}
    answer = answer_of(draws, cost_of_steps, ["a"], horizon=2000, step=1.0)
    assert (answer.name, answer.in_sight) == ("", False) and answer.probability == pytest.approx(0.5)
    assert answer_of(draws, cost_of_steps, ["a"], horizon=400, step=1.0).probability == pytest.approx(0.8)


def test_a_forecast_is_median_and_80_percent_interval_cut_at_the_horizon():
    forecasted = forecast_from(np.arange(1.0, 101), 2000, reached=False)
    assert (forecasted.low, forecasted.steps, forecasted.high, forecasted.within) == (10, 50, 90, 1.0)
    record = forecast_from(np.arange(1.0, 101), 80, reached=False).as_dict()
    assert record["predicted_steps_high"] is None and record["predicted_steps"] == 50
    assert record["interval"] == 0.8 and record["probability_within_horizon"] == 0.8
    assert forecast_from(np.arange(1.0, 101), 5, reached=False).low == 5, "no end but an open one lies beyond"


def test_the_packaged_constants_are_whole_and_read_back():
    law, record = packaged_law(), packaged()
    width = len(features(curve_of(0.3), "vae", 0.95, 1.05))
    assert record["curves"] >= 100 and record["swaps"] >= 25 and len(record["data"]) == 16
    for group in ("trained", "fresh"):
        assert law.theta[group].shape == (width,) and set(law.noise[group]) == {"vae", "text_encoder"}
        assert min(law.spread[group]) >= 0
    assert 0 < law.correlation < 1 and all(0 < floor < 1 for floor in law.floors.values())
    assert law_record(law_from(law_record(law))) == law_record(law) == record["law"]
    assert set(SCOPES) >= {"interface", "core", "teacher"}


def test_a_forecast_needs_no_torch():
    names = "sanakit.swap.forecast, sanakit.swap.slope_law, sanakit.swap.calibration"
    code = f"import sys, {names}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_outside_what_was_studied_a_probability_is_extrapolated():
    known = calibrated_for("vae")
    inside = {key: known[key][0] for key in ("parameters", "tokens", "batch")} | {"measure": known["measure"]}
    assert why_extrapolated("vae", RaceFacts(**inside)) == ""
    told = why_extrapolated("vae", RaceFacts(**inside | {"parameters": 10**10}))
    assert told.startswith("extrapolated: the probability is not calibrated for a core of this size")
    assert "10,000,000,000" in told and f"{known['parameters'][1]:,}" in told
    unit = why_extrapolated("vae", RaceFacts(**inside | {"measure": "metres"}))
    assert unit.startswith("extrapolated: the probability is not calibrated for errors in this unit (metres")


RACE = {
    "recommended": "finetune",
    "in_sight": True,
    "probability": 0.8612,
    "probability_within_horizon": 0.97,
    "margin": 1.1,
    "horizon": 2000,
    "budget_steps": 50,
    "stopped_by": "told",
    "extrapolated": None,
    "candidates": [
        {"name": "finetune", "predicted_steps": 400.0, "predicted_steps_low": 229.4, "predicted_steps_high": 1757.0,
         "interval": 0.8}
    ],
}  # fmt: skip


def test_what_a_race_says_in_sentences():
    told, ended = race_answer(RACE)
    assert told == (
        "finetune is within 10% of the cheapest with probability .86; "
        "reaches the base's quality within 2,000 steps with .97 "
        "(80% interval 229 to 1,757 steps)"
    )
    assert ended == "the race ended after 50 steps: its answer was sure enough"
    last = race_answer(RACE | {"extrapolated": "extrapolated: x", "stopped_by": "time"})
    assert last[-1] == "extrapolated: x" and "time limit" in last[1]
    told = race_answer(RACE | {"in_sight": False, "probability": 0.999})[0]
    assert told == (
        "no strategy is expected to reach the base's quality within 2,000 steps, with probability .99; "
        "finetune is nearest"
    )
    at_once = RACE["candidates"][0] | {"predicted_steps": 0, "predicted_steps_low": 0, "predicted_steps_high": 0}
    measured = race_answer(RACE | {"extrapolated": "extrapolated: x", "candidates": [at_once]})
    assert measured == ["finetune has the base's quality before any step: nothing has to be trained", ended]
    assert race_answer({"recommended": "lora", "candidates": []}) == [], "a run of an earlier version"
    assert (chosen_word(RACE), chosen_word(RACE | {"in_sight": False}), chosen_word({})) == (
        "recommended",
        "nearest",
        "recommended",
    )
    assert [share(p) for p in (0, 0.001, 0.5, 0.999, 1)] == ["0", ".01", ".50", ".99", "1"]
