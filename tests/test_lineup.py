"""Which strategies race: controls rest unless they are asked for, an adapter brings one arm of its own."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from sanakit.adapters import ADAPTERS, adapters_of
from sanakit.cli import swap as commands
from sanakit.cli.app import app
from sanakit.cli.verdict_view import print_plan, print_validation
from sanakit.config import make_config
from sanakit.errors import SanakitError
from sanakit.reporting import write_report
from sanakit.reporting.strategies import race_answer
from sanakit.strategies.base import STRATEGIES, strategy_named
from sanakit.swap import lineup, rungs
from sanakit.swap import stages as engine
from sanakit.swap.full import starting_system
from sanakit.swap.lineup import raced_names, resting_controls, write_plan
from sanakit.swap.rates import GRID
from sanakit.swap.rungs import auto_rungs, fixed_rungs
from sanakit.swap.settings import horizon_of, rungs_in, strategy_of, with_adapter

NAMES = ["finetune", "naive", "scratch"]


def config_of(strategy="auto", controls=False, adapter=None, names=NAMES):
    return make_config(
        {
            "train": {"strategy": strategy},
            "smoke": {"strategies": names, "controls": controls},
            "adapter": {"name": adapter},
        }
    )


def test_controls_rest_unless_they_are_asked_for():
    assert [name for name in STRATEGIES.entries() if STRATEGIES.get(name).control] == ["naive", "scratch"]
    assert resting_controls(config_of(), NAMES) == ["naive", "scratch"]
    assert resting_controls(config_of(controls=True), NAMES) == []
    assert resting_controls(config_of(names=["naive"]), ["naive"]) == []  # nothing else would race
    assert resting_controls(config_of(strategy="scratch"), ["scratch"]) == []


@pytest.mark.parametrize(
    "command",
    [
        ("swap-vae", "--candidate", "pca-f16c32"),
        ("swap-text-encoder", "--candidate", "wordllama"),
        ("validate", "--stage", "smoke", "--vae", "pca-f16c32"),
    ],
)
def test_a_flag_of_every_command_that_races_asks_for_them(command, monkeypatch):
    configs = []
    monkeypatch.setattr(commands, "run", lambda config, *rest, **more: configs.append(config))
    for more in ([], ["--controls"]):
        assert CliRunner().invoke(app, [*command, *more]).exit_code == 0
    assert [config.smoke.controls for config in configs] == [False, True]


@pytest.mark.parametrize("command", ["swap-vae", "swap-text-encoder"])
def test_the_length_of_a_race_is_automatic_or_named(command, monkeypatch):
    configs = []
    monkeypatch.setattr(commands, "run", lambda config, *rest, **more: configs.append(config))
    candidate = "pca-f16c32" if command == "swap-vae" else "wordllama"
    for more in ([], ["--budget-steps", "16", "--time-limit", "7.5"]):
        assert CliRunner().invoke(app, [command, "--candidate", candidate, *more]).exit_code == 0
    assert [config.smoke.budget_steps for config in configs] == ["auto", 16]
    assert [config.smoke.time_limit for config in configs] == [None, 7.5]
    assert rungs_in(configs[0]) == auto_rungs(400) and rungs_in(configs[1]) == fixed_rungs(16)
    for wrong in ("7", "often", "-16"):
        refused = CliRunner().invoke(app, [command, "--candidate", candidate, "--budget-steps", wrong])
        assert refused.exit_code == 2 and len(configs) == 2


def test_the_horizon_is_as_far_as_the_study_went_or_as_interface_layers_alone_were_trained():
    assert [horizon_of(config_of(), embedded=embedded) for embedded in (True, False)] == [2000, 50_000]
    assert horizon_of(make_config({"smoke": {"horizon": 700}}), embedded=False) == 700


def test_an_adapter_brings_one_arm_and_the_others_stay_plain(tiny_system, monkeypatch):
    swap = SimpleNamespace(base_system=tiny_system, candidate=tiny_system.vae, config=config_of(adapter="conv-latents"))
    assert raced_names(swap)[0] == [*NAMES, "finetune@conv-latents"]
    swap.config = config_of(adapter="linear-latents")  # a plain core anyway
    assert raced_names(swap)[0] == NAMES
    swap.config = config_of(strategy="lora", adapter="conv-latents")
    assert raced_names(swap)[0] == ["lora@conv-latents"]
    joined = strategy_named("finetune@conv-latents")
    assert joined.adapter == "conv-latents" and joined.start_key() == ("align", "conv-latents")
    assert joined.scales == STRATEGIES.get("finetune").scales and STRATEGIES.get("finetune").adapter == ""
    with pytest.raises(SanakitError, match=r"SK0101.*finetun"):
        strategy_named("finetun@conv-latents")


def test_an_arm_searches_its_rate_as_the_record_of_the_base_says(tiny_system, monkeypatch):
    searches, setup = [], SimpleNamespace()

    def at_best_rate(setup, strategy, start, *, search, **rest):
        searches.append(search)
        return SimpleNamespace(scores={})

    monkeypatch.setattr(lineup, "at_best_rate", at_best_rate)
    starts = {("align", ""): (tiny_system, {})}
    for embedded in (True, False):
        swap = SimpleNamespace(config=config_of(), base=SimpleNamespace(embedded=embedded), progress=lambda *_: None)
        lineup._arm(swap, setup, STRATEGIES.get("lora"), starts, [])
    assert list(searches[0].rates) == [0.004, 0.002, 0.0005] and not searches[0].goes_on
    assert searches[1].rates == GRID and searches[1].goes_on


@pytest.mark.parametrize(
    ("strategy", "recommended", "name", "rate"),
    [
        ("auto", "finetune@conv-latents", "finetune@conv-latents", 4e-3),
        ("auto", "finetune", "finetune", 3e-3),  # the race preferred the plain core
        ("auto", None, "finetune@conv-latents", 1e-3),  # no race was run
        ("lora", "finetune", "lora@conv-latents", 2e-3),
    ],
)
def test_stage_full_trains_what_the_race_recommends(strategy, recommended, name, rate):
    config = config_of(strategy=strategy, adapter="conv-latents")
    rates = {"finetune": 3e-3, "finetune@conv-latents": 4e-3, "naive": None}
    raced = {"recommended": recommended, "candidates": [{"name": n, "learning_rate": r} for n, r in rates.items()]}
    chosen = strategy_of(config, raced if recommended else {})
    assert chosen.name == name and chosen.learning_rate == rate
    assert chosen.adapter == name.partition("@")[2]
    assert strategy_of(config_of("naive"), raced).learning_rate == STRATEGIES.get("naive").learning_rate
    assert with_adapter(config_of(), "finetune") == "finetune"


def test_without_a_race_the_rate_is_the_one_measured_for_the_kind_of_swap():
    text = make_config({"text_encoder": {"name": "wordllama"}})
    assert strategy_of(text, {}).learning_rate == 2.5e-4 and strategy_of(config_of(), {}).learning_rate == 1e-3
    raced = {"recommended": "finetune", "candidates": [{"name": "finetune", "learning_rate": 5e-4}]}
    assert strategy_of(text, raced).learning_rate == 5e-4  # what its race found
    head = make_config({"text_encoder": {"name": "wordllama"}, "train": {"strategy": "align+head"}})
    assert strategy_of(head, {}).learning_rate == STRATEGIES.get("align+head").learning_rate  # not measured apart


@pytest.fixture
def small_race(small_world):
    """The small world's own VAE swapped in, raced by finetune with and without an adapter, beside resting controls."""
    card = Path(small_world["base"].removeprefix("path:")) / "card.json"
    small_world["vae"] = {"name": json.loads(card.read_text())["vae"]}
    small_world["adapter"] = {"name": "conv-latents"}
    small_world["train"] |= {"strategy": "auto", "start": "align"}
    small_world["smoke"] |= {"budget_steps": 8, "rates": [1.0], "strategies": NAMES}
    return small_world


def test_an_automatic_race_with_resting_controls_and_an_adapter_in_plan_report_and_terminal(
    small_race, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(rungs, "AUTO", 4)
    monkeypatch.setattr(rungs, "HALVING", 8)
    small_race["smoke"] |= {"budget_steps": "auto", "max_budget_steps": 8, "time_limit": 60.0}
    swap = engine.prepare(make_config(small_race), tmp_path / "run", lambda *_: None)
    validation = engine.run_stages(swap, ["smoke"])
    strategy = validation["strategy"]
    rows = {row["name"]: row for row in strategy["candidates"]}
    assert (strategy["budget_steps"], strategy["stopped_by"]) in ((4, "told"), (8, "told"), (8, "steps"))
    assert 0 <= strategy["probability"] <= 1 and strategy["conclusive"] == (strategy["probability"] >= 0.7)
    assert strategy["interval"] == rows["finetune"]["interval"] == 0.8 and strategy["horizon"] in (2000, 50_000)
    assert strategy["calibrated_for"]["batch"] == [32, 32] and strategy["core"]["batch"] == 4
    assert "for a core of this size" in strategy["extrapolated"]
    assert list(rows) == [*NAMES, "finetune@conv-latents"]
    for name in ("naive", "scratch"):
        assert not rows[name]["raced"] and rows[name]["steps"] == [0] and rows[name]["learning_rate"] is None
        assert rows[name]["predicted_steps"] is rows[name]["predicted_steps_high"] is None
        assert not rows[name]["finalist"] and rows[name]["initial_loss"] > 0
    assert rows["finetune"]["raced"] and rows["finetune"]["steps"][-1] == strategy["budget_steps"]
    assert rows["finetune@conv-latents"]["initial_loss"] != rows["finetune"]["initial_loss"]
    assert validation["strategy"]["recommended"] in ("finetune", "finetune@conv-latents")
    gates = {gate["gate"]: gate for gate in validation["stages"]["smoke"]["gates"]}
    assert {"smoke/alignment", "smoke/progress"} <= gates.keys()  # they read where naive starts
    gained = rows["naive"]["initial_loss"] - rows["finetune"]["initial_loss"]
    assert gates["smoke/alignment"]["value"] == pytest.approx(gained, abs=1e-5)

    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["strategies"]["naive"]["core"] == "keep, not trained (--controls)"
    assert plan["strategies"]["finetune@conv-latents"]["core"] == "keep, train x0.7" and plan["adapters"] == []
    notes = " ".join(plan["notes"])
    assert "not trained (--controls): naive, scratch" in notes
    assert "stock diffusers cannot load the result" in notes and ADAPTERS.get("conv-latents").saves in notes

    page = write_report(tmp_path / "run", tmp_path / "page.html").read_text()
    assert page.count("not trained<br>") == 2 and "extrapolated: the probability is not calibrated" in page
    assert f"the race ended after {strategy['budget_steps']} steps" in page
    print_plan(plan)
    print_validation(validation, tmp_path / "run", tmp_path / "page.html")
    told = " ".join(capsys.readouterr().out.split())
    assert "not trained" in told and "--controls" in told and "(80%)" in told
    answer = race_answer(strategy)  # with its probability, where the quality was not there before any step
    assert all(" ".join(line.split()) in told for line in answer)
    assert ("with probability" in told) == (rows[strategy["recommended"]]["predicted_steps"] != 0)

    for name, adapters in (("finetune", ()), ("finetune@conv-latents", ("conv-latents",))):
        system = starting_system(swap, strategy_of(swap.config, {"recommended": name}))
        assert adapters_of(system.core) == adapters


def test_an_adapter_of_the_other_joint_is_refused_before_the_race(small_race, tmp_path):
    small_race["adapter"] = {"name": "resampler-caption"}
    swap = engine.prepare(make_config(small_race), tmp_path / "run", lambda *_: None)
    with pytest.raises(SanakitError, match=r"SK0110.*joins tokens"):
        write_plan(swap, raced_names(swap)[0])
