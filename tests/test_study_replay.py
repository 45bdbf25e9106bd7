"""What a replayed race may see of curves that the study ran further than the race would have."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments" / "studies"
STEPS = (0, 6, 12, 25, 50, 75, 100, 150, 200, 300, 400, 500)


@pytest.fixture(scope="module", autouse=True)
def _importable():
    """The study's scripts import one another by their plain names."""
    sys.path.insert(0, str(EXPERIMENTS))
    yield
    sys.path.remove(str(EXPERIMENTS))


def record_of(curves, diverged="", **changes):
    """A record of the study. curves: by name of an arm its mean errors at STEPS, or the first of them.
    diverged: the arm that did."""
    from study_curves import from_row
    from study_rows import packed

    arms = {}
    for name, errors in curves.items():
        images = np.asarray(errors)[:, None] + np.linspace(-0.01, 0.01, 16)
        arms[name] = {
            "steps": list(STEPS[: len(errors)]),
            "mean": list(errors),
            "errors": packed(images),
            "rates": {"0.001": 1.1, "0.0005": 1.2, "0.002": None} if len(errors) > 1 or name == diverged else {},
            "diverged": "loss nan after step 20" if name == diverged else "",
            "trained_parameters": 10 * (len(errors) > 1),
        }
    row = {"kind": "vae", "base": "dc-minilm", "candidate": "c", "seed": 0, "measure": "loss", "tolerance": 1.05}
    row |= {"core": {"parameters": 10, "tokens": 4, "batch": 32}, "base_errors": packed(np.ones(16)), "arms": arms}
    return from_row(row | changes)


def falling(rate, start=1.4):
    return [1.0 + (start - 1.0) * float(np.exp(-rate * step)) for step in STEPS]


def late_fall(step):
    """Behind until `step`, then at the target."""
    return [1.4 if s < step else 1.0 for s in STEPS]


def test_a_race_sees_nothing_of_a_dropped_strategy_after_it_left():
    from study_replay import replay

    from sanakit.swap.rungs import fixed_rungs
    from sanakit.swap.slope_law import packaged_law

    others = {"align": [1.4], "lora": falling(0.003), "finetune": falling(0.0025)}
    for budget, left in ((100, 50), (200, 100)):
        plan = fixed_rungs(budget)
        seen, unseen = (
            replay(record_of(others | {"align+head": curve}), packaged_law(), plan)
            for curve in (late_fall(left + 25), [1.4] * len(STEPS))
        )
        head = seen.arms["align+head"]
        assert head.dropped and head.steps[-1] == left and head.forecast is None
        assert seen.result.answer == unseen.result.answer and seen.result.answer.name != "align+head"
        assert seen.spent == unseen.spent == 3 * 2 * left + 2 * budget + left, "three rates each, two go to the end"


def test_a_race_does_not_see_what_the_study_evaluated_between_its_rungs():
    from study_replay import replay

    from sanakit.swap.rungs import fixed_rungs
    from sanakit.swap.slope_law import packaged_law

    passing = [1.0 if step == 75 else 1.4 for step in STEPS]
    others = {"align": [1.4], "lora": falling(0.003), "finetune": falling(0.0025)}
    said = replay(record_of(others | {"align+head": passing}), packaged_law(), fixed_rungs(200))
    assert said.arms["align+head"].dropped and said.result.answer.name != "align+head"


def test_a_dropped_strategy_was_trained_to_where_its_rate_was_chosen():
    from study_replay import AUTO, replay

    from sanakit.swap.slope_law import packaged_law

    curves = {"align": [1.4], "align+head": [2.0] * 12, "lora": falling(0.0005), "finetune": falling(0.0006)}
    curves["cross-attention"] = [2.0] * 12
    said = replay(record_of(curves, kind="text"), packaged_law(), AUTO)
    assert "at step 25" in said.arms["align+head"].dropped and said.arms["align+head"].steps[-1] == 50
    assert said.spent == 2 * 150 + 2 * (100 + said.result.step)


def test_a_strategy_that_ended_at_the_target_costs_as_much_a_step_as_before():
    from study_replay import AUTO, keep_rungs, replayed_arm

    record = record_of({"align": [1.4], "finetune": falling(0.05)[:7]})
    arm = replayed_arm("finetune", record.arms["finetune"])
    keep_rungs(arm, AUTO)
    assert arm.steps == [0, *AUTO.steps] and arm.errors_by_evaluation[-1].mean() == pytest.approx(1.0, abs=0.01)
    assert [arm.seconds_per_step_at(step) for step in AUTO.steps] == pytest.approx([1.0] * len(AUTO.steps))


def test_a_strategy_that_diverged_leaves_the_replayed_race():
    from study_replay import AUTO, replay

    from sanakit.swap.slope_law import packaged_law

    curves = {"align": [1.4], "lora": falling(0.0005), "finetune": falling(0.0004)}
    for known in (1, 3, 8):  # evaluations before it diverged, the last one the lowest error of all
        short = [*falling(0.0001)[: known - 1], 1.07]
        said = replay(record_of(curves | {"align+head": short}, diverged="align+head"), packaged_law(), AUTO)
        assert said.arms["align+head"] not in said.result.finalists and said.arms["align+head"].forecast is None
        assert said.result.answer.name != "align+head"


def test_an_answer_that_a_longer_run_could_turn_is_said_to_be_open():
    from study_replay import is_right, open_to

    arrives = [1.4] * 11 + [1.0]  # at some step between 400 and 500
    record = record_of(
        {"align": [1.4], "align+head": [1.4] * 12, "lora": [1.4] * 12, "finetune": arrives},
        step_cost={"align": 0.0, "align+head": 0.5, "lora": 1.0, "finetune": 1.0},
    )
    assert is_right(record, "finetune") and open_to(record, "finetune") == ["align+head"]
    assert not is_right(record, "align+head") and open_to(record, "align+head") == ["align+head"]
    assert not is_right(record, "lora") and open_to(record, "lora") == ["lora"]
    assert not is_right(record, "") and open_to(record, "") == []
    nobody = record_of({"align": [1.4], "lora": [1.4] * 12})
    assert is_right(nobody, "") and open_to(nobody, "") == ["lora"] == open_to(nobody, "lora")


def test_the_third_is_not_judged_by_constants_of_other_runs_or_in_another_unit():
    import study_verdict
    from study_curves import read_records

    from sanakit.swap.calibration import calibrated_for

    known = record_of({"align": [1.4]}, measure=calibrated_for("vae")["measure"])
    study_verdict.require_unit([known])
    with pytest.raises(SystemExit, match="runs of vae are in another unit"):
        study_verdict.require_unit([known, record_of({"align": [1.4]})])
    with pytest.raises(SystemExit, match="constants are of other runs"):
        study_verdict.require_constants(read_records(()))


def test_coverage_is_unknown_where_every_run_is_censored():
    from study_forecasts import coverage_figures
    from study_measures import Forecasted, coverage

    none = [Forecasted(swap=swap, share=0.4, censored=True, score=None) for swap in "abc"]
    assert np.isnan(coverage(none, 0.8)) and coverage_figures(none)["coverage_80"] is None
    some = [*none, Forecasted(swap="d", share=0.5, censored=False, score=1.0)]
    low, high = coverage_figures(some)["coverage_80_interval"]
    assert low == high == 1.0, "samples without d say nothing"


def test_arms_that_differ_in_their_start_alone_cost_the_same_a_step():
    from study_curves import costs_of_strategies

    measured = {"align": 0.0, "lora": 0.8, "finetune@align-blocks": 1.0, "finetune": 0.5, "distill": 0.4}
    costs, slowest = costs_of_strategies(measured)
    assert slowest == 0.8 and costs == {
        "align": 0.0,
        "lora": 1.0,
        "finetune@align-blocks": 0.625,
        "finetune": 0.625,
        "distill": 0.5,
    }
    assert costs_of_strategies({}) == ({}, 1.0) and costs_of_strategies({"align": 0.0})[0] == {"align": 0.0}
    steps, once = {"align": 0.0, "lora": 1.0, "lora@align-blocks": 0.5}, {"lora": 10.0}
    record = record_of({"align": [1.4], "lora": falling(0.001)}, step_cost=steps, cost_once=once)
    assert record.arms["lora"].step_cost == 1.0 and record.arms["lora"].once == 20.0


def raced_again(record, plan, law, monkeypatch):
    """The race itself over these curves: `advance` reads what the study measured instead of training."""
    from study_replay import question_of, race_of, replayed_arm

    from sanakit.swap import race as module
    from sanakit.swap.rungs import rungs

    known = {one.curve.name: one for one in race_of(record)}
    arms = [replayed_arm(name, one) for name, one in known.items()]
    for arm in arms:
        arm.steps, arm.errors_by_evaluation, arm.diverged = arm.steps[:1], arm.errors_by_evaluation[:1], ""

    def advance(setup, arm, until, on_step=None):
        one = known[arm.strategy.name]
        last = [int(step) for step in one.curve.steps if step <= until]
        if arm.state is None or arm.diverged or arm.steps[-1] >= until:
            return
        if last[-1] < until and one.diverged:
            arm.diverged = one.diverged
            return
        arm.steps.append(until)
        arm.errors_by_evaluation.append(one.errors[len(last) - 1])
        arm.seconds = arm.seconds_at[until] = one.step_cost * until

    monkeypatch.setattr(module, "advance", advance)
    for arm in arms:
        for rung in rungs(plan.halving):
            if rung <= plan.rates_at:
                advance(None, arm, rung)
    result = module.race(SimpleNamespace(question=question_of(record, law), limit=None), arms, budget=plan)
    rates = 2 * plan.rates_at
    return result, sum(known[a.strategy.name].step_cost * (a.steps[-1] + rates) for a in arms if a.state)


def test_a_replayed_race_says_what_the_race_itself_says_of_these_curves(monkeypatch):
    from study_replay import AUTO, replay

    from sanakit.swap.rungs import fixed_rungs
    from sanakit.swap.slope_law import packaged_law

    law, generator = packaged_law(), np.random.default_rng(0)
    for _ in range(12):
        rates = generator.uniform(0.0002, 0.01, 4)
        curves = {
            "align": [1.4],
            **dict(zip(("align+head", "lora", "cross-attention"), map(falling, rates), strict=False)),
        }
        curves["finetune"] = falling(rates[3] * 4)[: int(generator.integers(7, 13))]  # it may end at the target early
        costs = dict(zip(curves, (0.0, *generator.uniform(0.4, 1, 4)), strict=True))
        record = record_of(curves, kind="text", step_cost=costs)
        for plan in (fixed_rungs(100), fixed_rungs(200), AUTO):
            itself, spent = raced_again(record, plan, law, monkeypatch)
            said = replay(record, law, plan)
            assert (said.result.answer, said.result.step) == (itself.answer, itself.step)
            assert said.spent == pytest.approx(spent)
