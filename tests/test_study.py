"""The decision study: its plan, what its runs leave on disk, that they resume,
and that the evaluation third is used once."""

import ast
import copy
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

EXPERIMENTS = Path(__file__).parent.parent / "experiments" / "studies"


@pytest.fixture(scope="module", autouse=True)
def _importable():
    """The study's scripts import one another by their plain names."""
    sys.path.insert(0, str(EXPERIMENTS))
    yield
    sys.path.remove(str(EXPERIMENTS))


def page_of(verdict):
    """What docs/decision-study.md says of the evaluation third."""
    spec = importlib.util.spec_from_file_location("study_page", EXPERIMENTS.parent / "study_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return "\n".join(module.evaluation(verdict, module.read("decision_study.json")))


def test_the_plan_is_as_large_as_it_must_be_and_stays_as_it_was_written():
    import study_plan as plan

    assert len(plan.SWAPS) == len(set(plan.SWAPS)) == 49 and sum(s.kind == "text" for s in plan.SWAPS) >= 12
    assert {s.base for s in plan.SWAPS} == {"tiny-sana", "dc-minilm", "pca-wordllama"}
    assert sum(s.base == "tiny-sana" for s in plan.SWAPS) >= 4
    assert [sum(s.scratch == group for s in plan.SWAPS) for group in ("near", "others")] == [5, 5]
    assert plan.plan_fingerprint() == "0204e6965506", "changed after it was written: runs would no longer count"


def test_the_evaluation_third_holds_new_swaps_alone_by_a_rule_of_their_names():
    import study_plan as plan

    held = plan.evaluation_third()
    assert len(held) == 16 and sum(s.kind == "text" for s in held) == 6
    assert not held & set(plan.EARLIER)
    for kind in plan.EVALUATED:
        others = [s for s in plan.NEW if s.kind == kind and s not in held]
        assert max(plan.draw(s) for s in held if s.kind == kind) < min(map(plan.draw, others))


def test_the_evaluation_third_runs_first_and_second_seeds_last():
    import study_plan as plan

    late = {plan.EARLIER[0].name, plan.EARLIER[3].name}
    order = plan.runs(late)
    assert [run.evaluation for run in order[:49]] == [True] * 16 + [False] * 33
    assert [run.seed for run in order] == [0] * 49 + [1] * 2 and {run.swap.name for run in order[49:]} == late
    assert len({run.folder for run in order}) == 51


def test_every_candidate_of_the_plan_can_be_named():
    import study_candidates
    import study_plan as plan

    from sanakit.text_encoders import TEXT_ENCODERS
    from sanakit.text_encoders.encoder_only import WORLD_TOKENS
    from sanakit.vaes import VAES

    for swap in plan.SWAPS:
        name = study_candidates.name_of(swap.candidate)
        if not name.startswith("path:"):
            (VAES if swap.kind == "vae" else TEXT_ENCODERS).get(name.partition("?")[0])
    assert study_candidates.name_of("minilm-5") == f"path:runs/study/minilm-5?max_tokens={WORLD_TOKENS}"


def test_only_one_function_reads_the_evaluation_third_and_only_one_command_calls_it():
    readers, callers, named = set(), set(), 0
    for path in EXPERIMENTS.glob("*.py"):
        source = path.read_text()
        named += source.count("study_evaluation")
        for function in [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]:
            names = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}
            readers |= {function.name} if "EVALUATION" in names else set()
            callers |= {f"{path.stem}.{function.name}"} if "read_evaluation" in names else set()
    assert named == 1, "the file is named once, in study_rows.py"
    assert readers == {"add_run", "read_evaluation"} and callers == {"decision_study.evaluate"}


def finished(run, late=False, base="f0", **changes):
    import study_plan as plan
    from study_rows import packed

    steps = [0, 6, 12, 25, 50, 75, 100, 150]
    falling = 1.3 * np.exp(-0.002 * np.array(steps))[:, None] * np.ones((1, 16))
    arm = {"steps": steps, "mean": falling.mean(1).tolist(), "errors": packed(falling), "rates": {}}
    arm["trained_parameters"] = 10
    row = {"run": run.name, "swap": run.swap.name, "seed": run.seed, "plan": plan.plan_fingerprint()}
    row |= {"kind": run.swap.kind, "base": run.swap.base, "candidate": run.swap.candidate, "base_fingerprint": base}
    row |= {
        "measure": "loss",
        "core": {"parameters": 10, "tokens": 4, "batch": 32},
        "tolerance": 1.05,
        "base_errors": packed(np.ones(16)),
        "arms": {"finetune": arm},
        "minutes": 1.0,
    }
    return row | {"step_cost": {"finetune": 1.0}, "cost_once": {}} | changes


def test_the_third_is_judged_when_it_is_whole_and_once(tmp_path, monkeypatch):
    import decision_study
    import study_measures
    import study_plan as plan
    import study_rows
    import study_verdict

    monkeypatch.setattr(study_measures, "RESAMPLES", 20)
    monkeypatch.setattr(study_verdict, "require_constants", lambda fitting: None)
    monkeypatch.setattr(study_verdict, "require_unit", lambda records: None)
    for base in ("tiny-sana", "dc-minilm", "pca-wordllama"):
        study_rows.write_base(base, {"fingerprint": "f0", "data": "d"}, tmp_path)
    held = [run for run in plan.runs() if run.evaluation]
    for run in held[1:]:
        study_rows.add_run(finished(run), evaluation=True, late=False, results=tmp_path)
    study_rows.add_run(finished(held[0], base="another"), evaluation=True, late=False, results=tmp_path)
    with pytest.raises(SystemExit, match="1 runs of the evaluation third are not done"):
        decision_study.evaluate(tmp_path)
    assert decision_study.next_run("", set(), tmp_path) == held[0]
    study_rows.add_run(finished(held[0]), evaluation=True, late=False, results=tmp_path)
    judged = decision_study.evaluate(tmp_path)
    assert judged["runs"] == 16 and {row["candidate"] for row in judged["swaps"]} == {r.swap.candidate for r in held}
    assert [row["race"] for row in judged["decisions"]] == ["50", "100", "200", "auto"] and judged["constants"]
    assert all({"told", "right_of_told", "right_interval", "brier"} <= row.keys() for row in judged["decisions"])
    kinds, bases = ("vae", "text_encoder"), ("tiny-sana", "dc-minilm", "pca-wordllama")
    firsts = ("first seeds", *(f"{kind}, first seeds" for kind in kinds))
    assert judged["groups"].keys() == {*kinds, *bases, *firsts}, "no core of ten parameters is calibrated"
    assert [judged["groups"][kind]["decisions"][0]["runs"] for kind in kinds] == [10, 6]
    assert len(judged["answers"]) == 4 * 16 and len(judged["every_arm"]) == 16
    assert [goal["goal"] for goal in judged["goals"]][:3] == ["at least 14", "12 of 14", "1 of 14 at most"]
    page = page_of(judged)
    assert "| swaps | at least 14 | 16 | yes |" in page and "| vae, first seeds |" in page
    assert all(f"| {run.swap.base} | {run.swap.candidate} |" in page for run in held)
    assert len(json.loads((tmp_path / decision_study.STUDY).read_text())["swaps"]) == 16
    with pytest.raises(SystemExit, match="used once"):
        decision_study.evaluate(tmp_path)


def test_the_committed_verdict_is_of_this_plan_and_its_goals_follow_from_its_figures():
    import decision_study
    import study_plan as plan
    import study_verdict

    verdict = json.loads((EXPERIMENTS.parent / "results" / decision_study.STUDY).read_text())
    assert verdict["plan"] == plan.plan_fingerprint() and verdict["swap_count"] == len(plan.evaluation_third())
    assert same(study_verdict.goals(verdict["groups"]["first seeds"])) == verdict["goals"]
    first = [row for row in verdict["answers"] if row["race"] == "auto" and not row["seed"]]
    auto = next(row for row in verdict["groups"]["first seeds"]["decisions"] if row["race"] == "auto")
    assert [sum(row[key] for row in first) for key in ("told", "right")] == [auto["told"], auto["right"]] == [16, 14]


def test_a_swap_that_arrives_late_is_due_a_second_seed_and_status_counts(tmp_path, capsys):
    import decision_study
    import study_plan as plan
    import study_rows

    study_rows.write_base("dc-minilm", {"fingerprint": "f0", "data": "d"}, tmp_path)
    run = next(run for run in plan.runs() if run.swap.base == "dc-minilm")
    study_rows.add_run(finished(run), evaluation=run.evaluation, late=True, results=tmp_path)
    decision_study.print_status(tmp_path)
    assert capsys.readouterr().out.startswith("1 of 50 runs are done")
    assert decision_study.next_run(f"{run.swap.name} seed 1", set(), tmp_path).seed == 1
    assert decision_study.next_run("tiny-sana", set(), tmp_path) is None, "its base has not been made"
    with pytest.raises(SystemExit, match="its fingerprint is"):
        decision_study.require_base("dc-minilm", {"core": "other"}, "d", tmp_path)
    study_rows.write_base("dc-minilm", {"fingerprint": "f1", "data": "d"}, tmp_path)  # trained anew by the same recipe
    assert run.name in decision_study.done_runs(tmp_path)[0]
    study_rows.write_base("dc-minilm", {"fingerprint": "f2", "data": "d", "recipe": "another"}, tmp_path)
    assert decision_study.done_runs(tmp_path) == (set(), set())


def test_bases_of_the_study_are_kept_with_their_cards():
    import study_rows

    for name, facts in study_rows.read_bases().items():
        card = EXPERIMENTS.parent / "assets/study_bases" / name / "card.json"
        if name != "tiny-sana":  # packaged
            assert json.loads(card.read_text())["quality"] == facts["quality"]
            assert "_name_or_path" not in json.loads(card.with_name("config.json").read_text())


def test_rows_keep_per_image_errors_and_outlive_a_killed_writer(tmp_path):
    import study_rows

    values = np.random.default_rng(0).uniform(0.8, 2, (12, 128))
    back = study_rows.unpacked(json.loads(json.dumps(study_rows.packed(values))))
    np.testing.assert_allclose(back, values, atol=6e-4)
    np.testing.assert_allclose(back.mean(1), values.mean(1), atol=1e-4)
    path = tmp_path / "rows.jsonl"
    study_rows.append(path, {"run": "a"})
    path.write_text(path.read_text() + '{"run": "b", "half"')
    assert study_rows.read_lines(path) == [{"run": "a"}]
    study_rows.append(path, {"run": "c"})
    assert study_rows.read_lines(path) == [{"run": "a"}, {"run": "c"}]


def test_two_workers_never_hold_one_run(tmp_path):
    import study_rows

    with study_rows.claimed(tmp_path / "run") as ours, study_rows.claimed(tmp_path / "run") as theirs:
        assert ours and not theirs
    with study_rows.claimed(tmp_path / "run") as again:
        assert again


class Killed(BaseException):
    """Nothing catches it: what is on disk is all that is left."""


@pytest.fixture
def study(tiny_system, tiny_data):
    """A swap to other latents of the same images, and a run of it."""
    import study_plan as plan

    torch.nn.init.normal_(tiny_system.core.proj_out.weight, std=0.2)
    mixing = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3))).Q
    other = replace(tiny_data, latents=torch.einsum("dc,nvchw->nvdhw", mixing, tiny_data.latents))
    weights, nothing = np.array([0.0, 0.0, 0.4, 0.3, 0.3]), np.zeros(16)
    from sanakit.config import make_config
    from sanakit.run import stage_key
    from sanakit.swap.quality import Target

    target = Target(measure="loss", weights=weights, floor=nothing, unit=0.1, base=nothing + 1, tolerance=1.0)
    swap = SimpleNamespace(
        base_system=tiny_system,
        candidate=tiny_system.vae,
        candidate_data=(other, other),
        base_data=(tiny_data, tiny_data),
        target=target,
        num_held_out=16,
        fingerprint=lambda stage: stage_key(make_config({}), stage),
        base_fingerprint={"core": "f0"},
        images=SimpleNamespace(fingerprint="d"),
    )
    listed = plan.StudySwap(base="dc-minilm", kind="vae", candidate="turned", scratch="near")
    return swap, plan.StudyRun(swap=listed, seed=0, evaluation=False)


SHORT = {
    "budget": 4,
    "near": 5,
    "far": 6,
    "farthest": 7,
    "scratch": 5,
    "evaluated_steps": (1, 2, 4),
    "rates": (1.0, 2.0),
    "tries": 1,
}
LAST = {"align": 0, "align-blocks": 0, "finetune@align-blocks": 7, "scratch": 5}
TIMED = ("minutes", "step_cost", "cost_once")


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_bit_for_bit(study, tmp_path, monkeypatch):
    import study_run

    swap, run = study
    monkeypatch.setattr(study_run, "CHECKPOINT_SECONDS", 0.0)
    started = {}

    def build_once(base, candidate, strategy, *data, seed):
        """The closed forms take longest and are the same in every run."""
        if strategy.initialise not in started:
            started[strategy.initialise] = build(base, candidate, strategy, *data, seed=seed)
        system, scores = started[strategy.initialise]
        return replace(system, core=copy.deepcopy(system.core)), scores

    build = study_run.build
    monkeypatch.setattr(study_run, "build", build_once)
    length = study_run.Length(names=("align", "align-blocks", "finetune"), **SHORT)

    def finish(folder, dies_after=None):
        runner = study_run.Runner(swap=swap, run=run, folder=folder, length=length)
        keeper, steps = runner.keeper, []

        def mortal(setup, arm):
            keep = keeper(setup, arm)

            def after(step):
                steps.append(step)
                if len(steps) == dies_after:
                    raise Killed
                keep(step)

            return after

        runner.keeper = mortal
        return runner.finish(), steps

    straight, steps = finish(tmp_path / "straight")
    arms = straight["arms"]
    assert {name: arm["steps"][-1] for name, arm in arms.items()} == LAST, "nobody arrives and none is in sight"
    assert set(arms["finetune@align-blocks"]["rates"]) == {"0.001", "0.002"}
    for dies_after in (2, len(steps) - 2):  # in the sweep, and after a decision that read the arm that goes on
        folder = tmp_path / str(dies_after)
        with pytest.raises(Killed):
            finish(folder, dies_after)
        resumed, rest = finish(folder)
        assert len(rest) <= len(steps) - dies_after + 1, "it goes on from the checkpoint"
        assert all(key in resumed for key in TIMED)

        def same(row):
            return json.dumps({key: value for key, value in row.items() if key not in TIMED})

        assert same(resumed) == same(straight)


@pytest.fixture(scope="module")
def fitted():
    """The records that the constants were fitted to, in that order, and the committed figures of them."""
    from decision_study import done_runs
    from study_curves import read_records

    figures = json.loads((EXPERIMENTS.parent / "results" / "decision_study.json").read_text())
    return read_records(done_runs()[0]), figures


def same(value):
    return json.loads(json.dumps(value))


def test_a_swap_replays_to_the_committed_row_under_the_law_of_the_others(fitted):
    from study_fit import fit_law
    from study_replay import replay, row_of

    records, figures = fitted
    swap = "pca-wordllama text_encoder minilm"
    others = [curve for record in records if record.swap != swap for curve in record.curves()]
    law = fit_law(others, figures["constants"]["floors"])
    for record in [record for record in records if record.swap == swap]:
        facts = ("base", "kind", "candidate", "seed")
        row = next(row for row in figures["swaps"] if all(row[key] == getattr(record, key) for key in facts))
        replayed = same(row_of(record, replay(record, law)))
        assert {"truth", "steps", "right", "recommended", "race_steps", "stopped_by", "dropped"} <= replayed.keys()
        for key in replayed.keys() - {"probability", "forecast"}:
            assert replayed[key] == row[key], key
        assert replayed["probability"] == pytest.approx(row["probability"], abs=0.02)


def test_the_packaged_constants_are_those_of_the_committed_curves(fitted):
    from study_curves import calibrated_for, fingerprint
    from study_fit import fit_law

    from sanakit.swap.slope_law import law_record, packaged

    records, figures = fitted
    constants = packaged()
    assert constants["data"] == fingerprint(records) == figures["constants"]["data"]
    assert constants["calibrated_for"] == calibrated_for(records)
    law = law_record(fit_law([c for r in records for c in r.curves()], constants["law"]["floors"]))
    for group, theta in constants["law"]["theta"].items():
        np.testing.assert_allclose(law["theta"][group], theta, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(law["spread"][group], constants["law"]["spread"][group], rtol=0.05, atol=0.005)
    assert law["correlation"] == pytest.approx(constants["law"]["correlation"], abs=0.01)
    noise = constants["law"]["noise"]  # no text encoder was trained from scratch
    assert noise["fresh"]["text_encoder"] == noise["trained"]["text_encoder"] != noise["fresh"]["vae"]


def test_decisions_on_swaps_left_out_reach_what_they_must(fitted):
    _, figures = fitted
    by_race = {row["race"]: row for row in figures["leave_one_swap_out"]["decisions"]}
    auto = by_race["auto"]
    assert auto["told"] >= 0.8 * auto["runs"] and auto["right_of_told"] >= 0.85 * auto["told"]
    assert auto["right_of_sure"] == auto["sure"] >= 12
    assert auto["mean_cost"] <= 1.2
    assert auto["brier"] < auto["brier_of_base_rate"]
    for row in figures["leave_one_swap_out"]["forecasts"]:
        low, high = row["coverage_80_interval"]
        assert low <= row["coverage_80"] <= high
    assert {"decisions", "stated", "forecasts"} <= figures["leave_one_base_out"].keys()


def test_coverage_counts_censored_runs_as_what_they_show():
    from study_measures import Forecasted, bootstrap, coverage, forecasted, interval_score, kaplan_meier

    def one(share, censored=False):
        return Forecasted(swap="a", share=share, censored=censored, score=None)

    uniform = [one((i + 0.5) / 100) for i in range(100)]
    assert coverage(uniform, 0.8) == pytest.approx(0.8) and coverage(uniform, 0.9) == pytest.approx(0.9)
    # a run that ended without arriving says only that its share is larger: Kaplan and Meier's product
    ranks = [one(0.2), one(0.4, censored=True), one(0.6), one(0.95)]
    assert kaplan_meier(ranks, (0.1, 0.5, 0.9)) == pytest.approx([0, 1 / 4, 1 - 3 / 4 / 2])
    generator = np.random.default_rng(0)
    shares = generator.uniform(size=4000)
    cut = [one(min(s, 0.55), censored=bool(s > 0.55)) if i % 2 else one(s) for i, s in enumerate(shares)]
    assert coverage(cut, 0.8) == pytest.approx(0.8, abs=0.03), "half of the runs stop early"
    draws = np.arange(1.0, 101)
    assert forecasted("a", draws, 25.0, 500, 2000).share == pytest.approx(0.245)
    assert forecasted("a", draws, None, 60.0, 2000).censored and forecasted("a", draws, None, 60.0, 2000).share == 0.6
    inside, late = interval_score(draws, 50, 2000), interval_score(draws, 400, 2000)
    assert inside == pytest.approx(np.log(91 / 11)) and late == pytest.approx(inside + 10 * np.log(401 / 91))
    rows = [("a", 0.0), ("a", 0.0), ("b", 1.0)]
    assert bootstrap(rows, lambda row: row[0], lambda sample: np.mean([value for _, value in sample])) == [0.0, 1.0]


def test_a_race_has_no_controls_and_one_start():
    from study_curves import raced

    def arm(error):
        return {"mean": [error]}

    names = ("align", "align-blocks", "lora", "lora@align-blocks", "cross-attention", "scratch")
    arms = dict(zip(names, map(arm, (1.5, 1.3, 1.5, 1.3, 1.5, 2.0)), strict=True))
    assert raced(arms) == ["align", "align-blocks", "lora@align-blocks", "cross-attention"]
    assert raced(arms | {"align-blocks": arm(1.6)}) == ["align", "align-blocks", "lora", "cross-attention"]


def test_an_arrival_beyond_the_horizon_is_none():
    """What the race states is the probability of arriving within it."""
    from study_replay import HORIZON, costs, is_right

    def late(last):
        steps, errors = np.array([0, 100, last]), np.array([1.5, 1.3, 1.04])
        curve = SimpleNamespace(name="finetune", steps=steps.astype(float), errors=errors)
        arm = SimpleNamespace(curve=curve, step_cost=1.0, once=0.0)
        return SimpleNamespace(arms={"finetune": arm}, level=1.05)

    assert is_right(late(HORIZON + 800), "") and not is_right(late(HORIZON + 800), "finetune")
    assert costs(late(HORIZON + 800)) == {} and set(costs(late(HORIZON))) == {"finetune"}
    assert is_right(late(HORIZON), "finetune") and not is_right(late(HORIZON), "")
