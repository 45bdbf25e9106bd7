"""The decision: planted cases for every rule, and every committed run of the decision study."""

import sys
from pathlib import Path

import pytest

from sanakit.contracts import GateResult, Verdict
from sanakit.decision import ANSWERS, MEASURES, decide_swap
from sanakit.decision.answer import said_change
from sanakit.decision.next_step import next_command

ROOT = Path(__file__).parent.parent
STUDIES = ROOT / "experiments" / "studies"


def gate(name, verdict="pass", value=0.5, threshold=1.0, **more):
    result = GateResult(
        gate=name,
        code="SK0000",
        metric="m",
        value=value,
        ci_low=None,
        ci_high=None,
        threshold=threshold,
        verdict=Verdict(verdict),
        at_least=False,
    )
    return result.as_dict() | more


def row(metric, base, candidate, low=None, high=None):
    ends = {} if low is None else {"difference_low": low, "difference_high": high}
    return {"metric": metric, "unit": "", "base": base, "candidate": candidate, "better": ""} | ends


WORSE = row("PSNR", 26.7, 22.9, -4.1, -3.5)
RACED = {
    "recommended": "finetune",
    "conclusive": True,
    "steps_that_tell": 300,
    "target": {"tolerance": 1.05},
    "candidates": [
        {
            "name": "finetune",
            "steps": [0, 50, 100],
            "predicted_steps": 240.0,
            "predicted_steps_low": 180.0,
            "predicted_steps_high": 400.0,
            "seconds_per_step": 1.5,
            "seconds_once": 60.0,
            "trained_parameters": 1_000_000,
        }
    ],
}


def validation(*gates, stages=("component", "smoke"), race=RACED, allowed=None):
    """A validation of passed stages with more gates in their own ones."""
    known = {name: {"verdict": "pass", "seconds": 10.0, "gates": [gate(f"{name}/own")]} for name in stages}
    for one in gates:
        known[one["gate"].partition("/")[0]]["gates"].append(one)
    policy = {"name": "default", "allowed_loss": allowed or {}}
    return {"stages": known, "strategy": race, "policy": policy, "next": "sanakit ls"}


def answer(checked, **facts):
    return decide_swap(checked, tolerance=1.05, **facts)


HOPELESS = RACED | {"in_sight": False, "probability": 0.97, "horizon": 2000}
LATE = RACED["candidates"][0] | {"predicted_steps_high": None}
FAR = RACED["candidates"][0] | {"probability_within_horizon": 0.78}
OPEN_RACE = RACED | {"conclusive": False, "candidates": [LATE]}
NO_SIGHT = RACED | {"conclusive": False, "candidates": [LATE | {"predicted_steps": None}]}
FULL = ("component", "smoke", "full")
SCALE = "--set vae.scaling_factor=0.2565 (1/std of these images)"


@pytest.mark.parametrize(
    ("checked", "component", "expected", "said"),
    [
        (validation(), [], "swap", "no measure is worse"),
        (validation(), [WORSE], "swap-with-loss", "worse than the base's: PSNR -3.80 dB (the policy does not say"),
        (validation(allowed={"psnr": 4.5}), [WORSE], "swap-with-loss", "within what the policy allows"),
        (validation(allowed={"psnr": 3.0}), [WORSE], "do-not", "larger than the policy allows: PSNR -3.80 dB"),
        (validation(allowed={"psnr": 3.8}), [WORSE], "not-yet", "holds its limit"),
        (validation(stages=("component",)), [], "not-yet", "Stage smoke was not run"),
        (validation(stages=("full",)), [], "not-yet", "stage component"),
        (validation(gate("component/scale-high", "fail")), [], "do-not", "Fix first: component/scale-high"),
        (validation(gate("component/scale-low", "fail", hint=SCALE)), [], "do-not", f"What would mend it: {SCALE}."),
        (validation(gate("component/meaning", "fail")), [], "do-not", "component/meaning (SK0000) failed."),
        (validation(gate("smoke/control", "inconclusive")), [], "not-yet", "smoke/control (SK0000) could not"),
        (validation(race=OPEN_RACE), [], "not-yet", "no late end"),
        (validation(race=NO_SIGHT), [], "not-yet", "not in sight: finetune was nearest"),
        (validation(race=RACED | {"extrapolated": "a larger core"}), [], "not-yet", "extrapolated"),
        (
            validation(race=HOPELESS),
            [],
            "do-not",
            "No strategy is expected to reach the base's quality within 2000 steps",
        ),
        (validation(race=HOPELESS | {"extrapolated": "x"}), [], "not-yet", "extrapolated"),
        (validation(race=OPEN_RACE | {"probability": 0.55}), [], "not-yet", "right strategy with probability 0.55"),
        (validation(race=RACED | {"candidates": [LATE]}), [], "not-yet", "has no late end"),
        (validation(race={"recommended": None, "candidates": []}), [], "not-yet", "No strategy"),
        (validation(race=OPEN_RACE, stages=FULL), [], "swap", "no measure is worse"),
        (validation(gate("full/quality", "fail", 1.4), stages=FULL), [], "do-not", "full/quality"),
        (validation(allowed={"kid": 0.05}, stages=FULL), [], "not-yet", "limits what was not measured: kid"),
        (validation(allowed={"kid": 0.05}), [], "swap", "no measure is worse"),  # stage full will measure it
        (validation(allowed={"psnr": 1.0}), [], "not-yet", "limits what was not measured: psnr"),
        (validation(allowed={"psnr": 1.0}) | {"kind": "text_encoder"}, [], "swap", "no measure is worse"),
        (validation(gate("full/x", "inconclusive", error="theirs: KeyError"), stages=FULL), [], "not-yet", "evaluated"),
    ],
    ids=str,
)
def test_the_rules(checked, component, expected, said):
    decision = answer(checked, component=component)
    assert (decision["answer"], said in decision["reason"]) == (expected, True), decision["reason"]
    assert decision["next"] == checked["next"] and decision["answer"] in ANSWERS


def test_a_measured_arrival_is_no_forecast():
    arrived = RACED["candidates"][0] | {"predicted_steps": 50.0, "predicted_steps_low": 50.0}
    assert answer(validation(race=RACED | {"extrapolated": True, "candidates": [arrived]}))["answer"] == "swap"


def test_gains_losses_and_what_is_the_same():
    rows = [
        WORSE,
        row("SSIM", 0.90, 0.905, -0.002, 0.012),  # the interval holds zero
        row("perceptual distance (EffLite0)", 0.2, 0.3, 0.08, 0.12),
        row("tokens per image", 9, 36),
        row("latent values per image", 1152, 576),
        row("encode", 15.0, 14.2, -1.2, -0.4),  # 5%: timings differ by as much
        row("decode", 10.0, 20.0, 9.0, 11.0),
        row("weights in memory", 12.5, 12.4),
        row("latent standard deviation", 1.0, 0.9),  # no measure of the decision
    ]
    decision = answer(validation(), component=rows)
    gains = {one["name"]: one for one in decision["gains"]}
    losses = {one["name"]: one for one in decision["losses"]}
    assert set(gains) == {"latent-values", "decode-speed"}
    assert set(losses) == {"psnr", "perceptual-distance", "tokens"}
    assert decision["same"] == ["ssim", "encode-speed", "weights"]
    assert losses["psnr"]["change"] == pytest.approx(-3.8) and losses["psnr"]["ci_low"] == -4.1
    assert losses["perceptual-distance"]["change"] == pytest.approx(0.5)  # a share of the base's
    assert losses["perceptual-distance"]["ci_high"] == pytest.approx(0.6)
    assert losses["tokens"]["change"] == 3.0 and said_change(losses["tokens"]) == "x4"
    assert all(one["why"] and one["within_allowed"] == "unknown" and one["allowed"] is None for one in losses.values())


@pytest.mark.parametrize(
    ("limits", "metric", "within"),
    [
        ({"tokens": 3.0}, row("tokens per image", 9, 36), True),
        ({"tokens": 2.9}, row("tokens per image", 9, 36), False),
        ({"psnr": 10.0}, row("PSNR", 26.7, 22.9), "unknown"),  # an earlier run: no interval
        ({"ssim": 0.2}, row("SSIM", 0.9, 0.8, -0.12, -0.08), True),
        ({"ssim": 0.1}, row("SSIM", 0.9, 0.8, -0.12, -0.08), "unknown"),
    ],
)
def test_an_allowed_loss_holds_for_the_whole_interval(limits, metric, within):
    losses = answer(validation(allowed=limits), component=[metric])["losses"]
    assert [one["within_allowed"] for one in losses] == [within]


def test_the_full_run_is_compared_with_the_base_by_its_gates():
    quality = gate("full/quality", value=1.12, threshold=1.25, ci_low=1.10, ci_high=1.14)
    near = quality | {"value": 1.04, "ci_low": 1.02, "ci_high": 1.06}
    prompts = gate("full/prompt-effect", value=1.3, ci_low=1.1, ci_high=1.5)
    decision = answer(validation(quality, prompts, stages=FULL))
    assert [(one["name"], round(one["change"], 3)) for one in decision["losses"]] == [("denoising-error", 0.12)]
    assert [one["name"] for one in decision["gains"]] == ["prompt-gain"]
    assert answer(validation(near, stages=FULL))["same"] == ["denoising-error"]  # the race calls this reached


def test_cost_and_risk():
    plan = {"groups": [{"group": "core", "parameters": 10_000_000}]}
    near = gate("component/scale-high", value=0.95)
    open_one = gate("smoke/within-reach", "inconclusive", hint="train longer")
    checked = validation(near, open_one, race=RACED | {"interval": 0.8, "probability_within_10": 0.86})
    checked["stages"]["smoke"]["peak_mb"] = 2100
    decision = answer(checked, plan=plan, seconds_per_step=0.5)
    cost, risk = decision["cost"], decision["risk"]
    assert (cost["steps"], cost["steps_low"], cost["steps_high"], cost["interval"]) == (240.0, 180.0, 400.0, 0.8)
    assert cost["hours"] == pytest.approx((240 * 1.5 + 60) / 3600)
    assert cost["device_hours_high"] == pytest.approx(400 * 0.5 / 3600)
    assert (cost["memory_mb"], cost["disk_mb"], cost["seconds_spent"]) == (2100, 4 * 48.0, 20.0)
    assert answer(checked, plan=plan, averaged=True)["cost"]["disk_mb"] == 4 * (48.0 + 40.0)  # and the weights' average
    assert risk["probabilities"] == {"probability_within_10": 0.86} and risk["extrapolated"] is None
    assert [(one["gate"], one["hint"]) for one in risk["open"]] == [("smoke/within-reach", "train longer")]
    assert [one["gate"] for one in risk["near_threshold"]] == ["component/scale-high"]
    assert risk["failed"] == []
    failed = answer(validation(gate("smoke/control", "fail")))["risk"]["failed"]
    assert failed == [{"gate": "smoke/control", "code": "SK0000"}]
    # what a short race leaves open is settled by the full run
    settled = answer(validation(open_one, gate("full/quality", value=1.0, threshold=1.25), stages=FULL))
    assert settled["risk"]["open"] == [] and settled["answer"] == "swap"


@pytest.mark.parametrize(
    ("stages", "race", "more", "expected"),
    [
        (("component",), {}, {}, "sanakit validate --stage smoke --run-dir 'my runs/1'"),
        (FULL[:2], OPEN_RACE, {}, "--stage smoke --run-dir 'my runs/1' --set smoke.budget_steps=300"),
        (FULL[:2], RACED, {}, "sanakit validate --stage full --run-dir 'my runs/1'"),
        # the 80th percentile is open, or beyond the horizon: stage full would ask for a number
        (FULL[:2], RACED | {"candidates": [LATE]}, {}, "--stage full --run-dir 'my runs/1' --set train.max_steps=300"),
        (
            FULL[:2],
            RACED | {"candidates": [FAR]},
            {},
            "--stage full --run-dir 'my runs/1' --set train.max_steps=300",
        ),
        (FULL[:2], RACED, {"refused": True}, "sanakit ls vaes"),
        (FULL, RACED, {}, "sanakit export --run-dir 'my runs/1' --out 'my runs/1/export'"),
        (
            FULL,
            RACED,
            {"first_failed": {"gate": "full/quality", "code": "SK0504"}, "trained_steps": 400},
            "--stage full --run-dir 'my runs/1' --set train.max_steps=800",
        ),
        (FULL, RACED, {"first_failed": {"gate": "full/progress", "code": "SK0502"}}, "sanakit explain SK0502"),
    ],
)
def test_one_command_comes_next(stages, race, more, expected):
    known = validation(stages=stages)["stages"]
    command = next_command(known, race, run_dir="my runs/1", kind="vae", candidate="pca", **more)
    assert command.endswith(expected), command


def test_an_open_gate_of_any_stage_comes_before_the_export():
    known = validation(gate("component/meaning", "inconclusive"), stages=FULL)["stages"]
    assert next_command(known, RACED, run_dir="x", kind="vae") == "sanakit explain SK0000"


@pytest.fixture(scope="module")
def replayed():
    """The races of every committed run of the decision study, as they would have ended, by the run's name."""
    sys.path.insert(0, str(STUDIES))
    try:
        from decision_study import done_runs
        from study_curves import read_records
        from study_replay import replay

        from sanakit.swap.slope_law import packaged_law

        law = packaged_law()
        return [replay(record, law) for record in read_records(done_runs()[0])]
    finally:
        sys.path.remove(str(STUDIES))


def race_record(said):
    """strategy.json as the race would have written it."""
    answer, best, end = said.result.answer, said.result.best, said.result.step
    candidates = [
        {"name": name, "steps": [step for step in arm.steps if step <= end]}
        | (arm.forecast.as_dict() if arm.forecast else {"predicted_steps": None})
        for name, arm in said.arms.items()
    ]
    stated = {"probability": answer.probability, "in_sight": answer.in_sight, "conclusive": answer.told}
    race = {"recommended": best.strategy.name, "candidates": candidates, "horizon": 2000, "steps_that_tell": 200}
    return race | stated


def test_every_run_of_the_study_is_answered_as_its_race_tells(replayed):
    assert len(replayed) >= 20
    answers = []
    for said in replayed:
        race, forecast = race_record(said), said.result.best.forecast.as_dict()
        told, in_sight = race["conclusive"], race["in_sight"]
        arrives = forecast["predicted_steps"] is not None and forecast["predicted_steps_high"] is not None
        expected = "swap" if told and in_sight and arrives else "do-not" if told and not in_sight else "not-yet"
        decision = decide_swap(validation(race=race), tolerance=1.05)
        assert decision["answer"] == expected, (race, decision["reason"])
        assert decision["cost"]["steps"] == forecast["predicted_steps"]
        lossy = decide_swap(validation(race=race), component=[WORSE])["answer"]
        assert lossy == {"swap": "swap-with-loss"}.get(expected, expected)
        answers.append(expected)
    assert {"swap", "not-yet"} <= set(answers)


def scored(metric, base, candidate, low, high, features="EffLite0"):
    """A row of evaluation.json."""
    row = {"metric": metric, "features": features, "base": base, "candidate": candidate}
    return row | {"difference_low": low, "difference_high": high, "difference": candidate - base}


COLOURS = "8x8 thumbnails"


def test_what_base_and_candidate_draw_enters_gains_and_losses():
    samples = [
        scored("kid", 0.50, 0.58, 0.04, 0.12),
        scored("kid", 0.03, 0.031, -0.002, 0.004, COLOURS),
        scored("frechet", 1500.0, 1900.0, 300.0, 500.0),
        scored("caption-recovery", 0.80, 0.86, 0.03, 0.09),
        scored("diversity", 1.0, 0.99, -0.015, -0.005),
    ]
    decision = answer(validation(stages=FULL), samples=samples)
    assert [(r["name"], r["metric"], said_change(r)) for r in decision["losses"]] == [
        ("kid", "KID (EffLite0)", "+0.08")
    ]
    assert [(r["name"], said_change(r)) for r in decision["gains"]] == [("caption-recovery", "+6.0 points")]
    assert decision["same"] == ["colour-kid", "diversity"] and decision["answer"] == "swap-with-loss"
    for allowed, expected in ((0.03, "do-not"), (0.1, "not-yet"), (0.12, "swap-with-loss")):
        assert answer(validation(stages=FULL, allowed={"kid": allowed}), samples=samples)["answer"] == expected
    alone = answer(validation(stages=FULL), samples=[scored("kid", 0.1, 0.9, 0.7, 0.9, COLOURS)])
    assert [row["name"] for row in alone["losses"]] == ["colour-kid"]
    failed = scored("kid", 0.1, 0.1, None, None) | {"base": None}
    assert "kid" not in answer(validation(stages=FULL), samples=[failed])["same"]


def test_the_page_of_rules_names_every_answer_and_measure():
    page = (ROOT / "docs" / "decision.md").read_text()
    assert all(f"`{name}`" in page for name in (*ANSWERS, *MEASURES))


def test_what_trains_nothing_costs_nothing_and_rounding_is_no_loss():
    still = RACED | {"candidates": [RACED["candidates"][0] | {"trained_parameters": 0, "predicted_steps": 0.0}]}
    prompts = gate("full/prompt-effect", value=1 - 3e-8, ci_low=1 - 4e-8, ci_high=1 - 1e-8)
    decision = answer(validation(prompts, race=still, stages=FULL), trained_steps=400)
    assert (
        decision["cost"]["trained_steps"] == 0 and decision["same"] == ["prompt-gain"] and decision["answer"] == "swap"
    )


def test_speeds_are_timed_in_turn():
    """A machine that slows down meets both sides alike: the candidate is not called slower than itself."""
    import numpy as np
    import torch

    from sanakit.checks import vae_figures
    from sanakit.checks.base import interval
    from sanakit.checks.vae_figures import VAEFigures, timed_in_turn

    class Slowing:
        clock, calls = 0.0, []

        def __init__(self, side):
            self.side = side

        def encode_raw(self, images):
            Slowing.calls.append(self.side)
            Slowing.clock += 1 + 0.2 * len(Slowing.calls)
            return images

        decode_raw = encode_raw

    nothing = torch.zeros(1)
    blank = dict.fromkeys(("latents", "raw", "reconstructed"), nothing) | {"psnr": np.zeros(1), "ssim": np.zeros(1)}
    rates = {"encode_rate": 1.0, "decode_rate": 1.0, "encode_rates": np.ones(1), "decode_rates": np.ones(1)}
    figures = VAEFigures(**blank, **rates, perceptual=None, megabytes=1.0)
    sides = {side: (Slowing(side), figures) for side in ("candidate", "base")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae_figures.time, "perf_counter", lambda: Slowing.clock)
        timed = timed_in_turn(sides, torch.zeros(20, 3, 8, 8))
    assert Slowing.calls[:8] == ["candidate"] * 2 + ["base"] * 4 + ["candidate"] * 2
    low, high = interval(timed["candidate"].encode_rates - timed["base"].encode_rates)[1]
    assert low <= 0 <= high
    assert timed["base"].encode_rate == pytest.approx(timed["candidate"].encode_rate, rel=0.1)
