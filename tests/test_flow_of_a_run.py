"""From the race to the full run: how many steps, going on with more of them, and names that are refused early."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from test_interop_cli import sanakit
from typer.testing import CliRunner

from sanakit.checks import StageResult
from sanakit.cli import info, swap, train  # noqa: F401  they add their commands
from sanakit.cli.app import app
from sanakit.cli.names import check_names, require_run, stage_to_resume
from sanakit.config import make_config
from sanakit.contracts import GateResult, Verdict
from sanakit.errors import CODES, ExitCode, SanakitError
from sanakit.run import RunFolder, first_reader, flat, stage_key
from sanakit.swap import stages as engine

ARM = {"name": "finetune", "predicted_steps": 400.0, "predicted_steps_high": 900.0, "seconds_per_step": 2.0}
RACE = {"recommended": "finetune", "candidates": [ARM], "horizon": 2000}


def test_the_full_run_takes_the_80th_percentile_and_says_it_with_its_time(capsys):
    from sanakit.swap.full_steps import decide_steps, percentile

    assert percentile(399, 899, 0.9) == pytest.approx(400 * (900 / 400) ** (0.8416 / 1.6449) - 1, rel=1e-4)
    assert percentile(399, 899, 0.8) > percentile(399, 899, 0.9) and percentile(50, 50, 0.9) == 50
    config = decide_steps(make_config({}), RACE, run_dir="runs/x")
    assert config.train.steps == 606 and config.train.max_steps == 606
    told = capsys.readouterr().err
    assert "full: 606 steps of finetune, the 80th percentile of the race's forecast, about 20 min 12 s" in told
    given = make_config({}, ["train.max_steps=7"])
    assert decide_steps(given, {}, run_dir="runs/x") is given and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("race", "said"),
    [
        ({}, "no race recommends"),
        (RACE | {"candidates": [ARM | {"predicted_steps": None}]}, "not in sight"),
        (
            RACE | {"candidates": [ARM | {"predicted_steps_high": None}]},
            "about 400 steps, and the forecast has no late",
        ),
        (RACE | {"horizon": 500}, "finetune: 606 steps at the 80th percentile, smoke.horizon is 500"),
    ],
)
def test_without_a_number_the_full_run_is_refused_with_the_command_that_gives_one(race, said):
    from sanakit.swap.full_steps import decide_steps

    with pytest.raises(SanakitError, match=f"SK0513.*{said}") as refused:
        decide_steps(make_config({}), race, run_dir="runs/x")
    assert "sanakit validate --stage full --run-dir runs/x --set train.max_steps=N" in refused.value.fix
    assert refused.value.exit_code == CODES["SK0513"].exit_code == ExitCode.INCONCLUSIVE


def planted_gate(name):
    sides = {"value": 1.0, "ci_low": None, "ci_high": None, "threshold": 0.5, "verdict": Verdict.PASS}
    return GateResult(gate=name, code="SK0104", metric="m", **sides)


@pytest.fixture
def passing(small_world, tmp_path, monkeypatch):
    """`passing(stages, raises=None)` runs stages on the small world, each of one gate that passes; returns the run's
    validation.json. raises: the error of stage full."""

    def run(stages, raises=None):
        def one(stage):
            def measured(started):
                if stage == "smoke":
                    race = RACE | {"candidates": [ARM | {"learning_rate": 1e-3}]}
                    started.run.write_json("strategy.json", race | {"measured": started.fingerprint("smoke")})
                if stage == "component":
                    row = {"metric": "PSNR", "base": 28.0, "candidate": 30.0, "unit": "dB", "better": "higher"}
                    started.run.write_json(
                        "component.json", {"rows": [row | {"difference_low": 1.9, "difference_high": 2.1}]}
                    )
                if stage == "full" and raises:
                    raise raises
                return StageResult(results=[planted_gate(f"{stage}/planted")])

            return measured

        monkeypatch.setattr(engine, "RUNNERS", {stage: one(stage) for stage in engine.STAGES})
        values = small_world | {"vae": {"name": small_world["base"].replace("base", "vae")}}
        values["train"] = values["train"] | {"strategy": "auto", "max_steps": None}
        started = engine.prepare(make_config(values), tmp_path / "run", lambda *_: None, stages=stages)
        try:
            return engine.run_stages(started, stages)
        except SanakitError:
            return json.loads((tmp_path / "run" / "validation.json").read_text())

    return run


def test_a_candidate_that_was_replaced_in_place_keeps_no_result_of_the_earlier_one(passing, tmp_path, capsys):
    validation = passing(list(engine.STAGES))
    assert validation["decision"]["answer"] == "swap" and validation["decision"]["gains"][0]["change"] == 2
    path = next((tmp_path / "vae").glob("*.safetensors"))
    save_file({name: 0.5 * tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    validation = passing(["full"])
    assert list(validation["stages"]) == ["full"] and validation["strategy"]["recommended"] is None
    assert validation["decision"]["answer"] == "not-yet" and not validation["decision"]["gains"]
    assert "component was measured with another candidate" in capsys.readouterr().err
    assert (tmp_path / "run" / "other-strategy.json").is_file() and "--stage component" in validation["next"]


def test_a_full_run_is_of_the_race_that_recommended_it_and_one_that_raises_leaves_no_verdict(passing, tmp_path):
    first = passing(list(engine.STAGES))
    assert passing(["full"])["stages"] == first["stages"]  # done before
    path = tmp_path / "run" / "strategy.json"
    race = json.loads(path.read_text())
    race["candidates"][0]["predicted_steps_high"] = 1200.0  # at the same rate
    path.write_text(json.dumps(race))
    validation = passing(["full"], raises=SanakitError("SK0501", "planted"))
    assert "full" not in validation["stages"] and "--stage full" in validation["next"]
    assert passing(["full"])["stages"]["full"]["measured"] != first["stages"]["full"]["measured"]


@pytest.mark.parametrize(
    ("key", "stage"),
    [
        ("train.max_steps", "full"),
        ("monitors.latents", "full"),
        ("evaluate.num_prompts", "full"),
        ("smoke.budget_steps", "smoke"),
        ("train.batch_size", "smoke"),
        ("train.seed", "component"),
        ("data.source", "component"),
        ("base", "component"),
    ],
)
def test_a_stage_is_measured_again_where_a_key_changes_that_it_reads(key, stage):
    stages = ("component", "smoke", "full")
    assert first_reader(key) == stage and key in flat(make_config({}))
    other = {
        "base": "x",
        "data.source": "x",
        "train.max_steps": 9,
        "monitors.latents": "log",
        "smoke.budget_steps": 9,
        "train.batch_size": 9,
    }
    config, changed = make_config({}), make_config({}, [f"{key}={other.get(key, 7)}"])
    moved = [name for name in stages if stage_key(config, name) != stage_key(changed, name)]
    expected = [stage] if key == "smoke.budget_steps" else list(stages[stages.index(stage) :])
    assert moved == expected  # what a race is asked says nothing of the full run


def test_settings_of_a_later_stage_may_change_and_others_are_named(tmp_path):
    config = make_config({}, ["train.max_steps=60"])
    run = RunFolder.open(config, tmp_path / "run")
    done = {"verdict": "pass", "gates": []}
    run.write_json("validation.json", {"stages": {"component": done, "smoke": done, "full": done}})
    longer = make_config({}, ["train.max_steps=100"])
    RunFolder.open(longer, tmp_path / "run", ["full"])
    assert "max_steps: 100" in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(
        SanakitError, match="SK0105.*train.max_steps is 100 there, 60 asked, and stage full has read it"
    ):
        RunFolder.open(config, tmp_path / "run", ["smoke"])
    wider = make_config({}, ["train.max_steps=100", "train.batch_size=64"])
    with pytest.raises(
        SanakitError, match="SK0105.*train.batch_size is 32 there, 64 asked, and stage smoke has read it"
    ):
        RunFolder.open(wider, tmp_path / "run", ["full"])
    with pytest.raises(SanakitError, match="SK0105.*base is 'tiny-sana' there, 'path:x' asked") as refused:
        RunFolder.open(make_config({"base": "path:x"}, ["train.max_steps=100"]), tmp_path / "run", ["component"])
    assert "has read it" not in refused.value.found


@pytest.mark.parametrize(("short", "long", "branch"), [(6, 10, 4), pytest.param(60, 100, 40, marks=pytest.mark.slow)])
def test_sixty_steps_continued_to_a_hundred_are_a_hundred_at_once(small_world, tmp_path, capsys, short, long, branch):
    from sanakit.swap import stages as engine

    def trained_for(folder, steps):
        sets = [f"train.max_steps={steps}", "train.checkpoint_every=1000", "monitors.num_evaluations=1"]
        config = make_config(small_world, sets)
        run = engine.prepare(config, tmp_path / folder, lambda *_: None, stages=["full"])
        validation = engine.run_stages(run, ["full"], force=True)
        return validation, load_file(tmp_path / folder / "model" / "diffusion_pytorch_model.safetensors")

    trained_for("grown", short)
    validation, grown = trained_for("grown", long)
    assert (
        f"goes on from step-{branch:08d}, where the learning rate of the earlier run began to fall"
        in capsys.readouterr().err
    )
    assert validation["stages"]["full"]["steps"] == long
    _, at_once = trained_for("at-once", long)
    assert grown.keys() == at_once.keys() and all((grown[key] == at_once[key]).all() for key in grown)


def test_resume_takes_the_interrupted_stage_and_then_the_next(tmp_path):
    assert stage_to_resume(tmp_path) == "component"
    (tmp_path / "validation.json").write_text(json.dumps({"stages": {"component": {}}}))
    assert stage_to_resume(tmp_path) == "smoke"
    (tmp_path / "checkpoints" / "step-00000010").mkdir(parents=True)
    assert stage_to_resume(tmp_path) == "full"  # a training run without a race
    (tmp_path / "race").mkdir()
    assert stage_to_resume(tmp_path) == "smoke"
    (tmp_path / "validation.json").write_text(json.dumps({"stages": {"component": {}, "smoke": {}, "full": {}}}))
    assert stage_to_resume(tmp_path) == "full"


def test_a_run_folder_that_is_not_there_is_refused_with_its_neighbours(tmp_path):
    (tmp_path / "20260101-vae").mkdir()
    (tmp_path / "20260101-vae" / "config.yaml").write_text("base: tiny-sana\n")
    with pytest.raises(SanakitError, match="SK0130.*did you mean .*20260101-vae"):
        require_run(tmp_path / "20260101-vea")
    require_run(tmp_path / "20260101-vae")
    for command in (["validate", "--stage", "full", "--run-dir"], ["resume"]):
        result = CliRunner().invoke(app, [*command, str(tmp_path / "typo")])
        assert isinstance(result.exception, SanakitError) and result.exception.code == "SK0130", result.output
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    ("values", "said", "fix"),
    [
        (
            {"vae": {"name": "minilm"}},
            "'minilm' is a text encoder, expected a VAE",
            "swap-text-encoder --candidate minilm",
        ),
        (
            {"text_encoder": {"name": "dc-f16c16"}},
            "is a VAE, expected a text encoder",
            "swap-vae --candidate dc-f16c16",
        ),
        ({"vae": {"name": "./my-vae"}}, "is a path, expected a name", "path:./my-vae"),
        ({"base": "models/mine"}, "is a path, expected a name", "--base path:models/mine, or hub:models/mine"),
        ({"vae": {"name": "owner/vae@main:vae"}}, "is a path, expected a name", "or hub:owner/vae@main:vae"),
        ({"vae": {"name": "a/b/c"}}, "is a path, expected a name", "path:a/b/c"),
        ({"vae": {"name": "dc-f16c3"}}, "did you mean dc-f16c32", ""),
    ],
)
def test_a_name_of_another_kind_or_a_path_says_what_was_meant(values, said, fix, tmp_path, monkeypatch):
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path))
    with pytest.raises(SanakitError, match=f"SK0101.*{said}") as refused:
        check_names(make_config(values))
    assert fix in refused.value.fix


def test_the_image_size_is_the_bases_and_another_one_is_refused_by_its_card_alone():
    from sanakit.needs import Assumed
    from sanakit.needs.swap import outline_swap
    from sanakit.swap.early import ALONE_SIZE, decide_image_size

    def decided(*sets, trained_at):
        return decide_image_size(make_config({}, list(sets)), trained_at).data.size

    assert decided(trained_at=512) == 512 and decided("data.image_size=512", trained_at=512) == 512
    assert decided(trained_at=None) == ALONE_SIZE and decided("data.image_size=64", trained_at=None) == 64
    assert decided("train.target=vae", "data.image_size=64", trained_at=96) == 64  # no core is trained
    with pytest.raises(SanakitError, match="data.image_size is 64, tiny-sana was trained at 96") as refused:
        decided("data.image_size=64", trained_at=96)
    assert "Leave data.image_size out" in refused.value.fix
    with pytest.raises(SanakitError, match="SK0104.*data.image_size is 64, tiny-sana was trained at 96"):
        outline_swap(make_config({}, ["data.image_size=64"]), Assumed(), 1)  # the dry run refuses what the run would


@pytest.mark.parametrize(("asked", "expected"), [((), 32), (("--image-size", "64"), 64)])
def test_encode_takes_the_image_size_of_the_base(small_world, tmp_path, monkeypatch, capsys, asked, expected):
    source, card = small_world["data"]["source"], Path(small_world["base"].removeprefix("path:")) / "card.json"
    vae, out = json.loads(card.read_text())["vae"], str(tmp_path / "out")
    told = ["--vae", vae, "--base", small_world["base"], "--data", source, "--out", out, "--json", *asked]
    assert sanakit(monkeypatch, "encode", *told) == 0
    (entry,) = json.loads(capsys.readouterr().out)["entries"]
    assert json.loads((Path(entry["folder"]) / "manifest.json").read_text())["facts"]["size"] == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ls", "bases"), "tiny-sana"),
        (("describe", "tiny-sana"), "image_size"),
        (("describe", "finetune"), "learning_rate"),
        (("explain", "component/shift"), "SK0209"),
        (("explain", "sk0209"), "SK0209: "),
    ],
)
def test_bases_strategies_and_gates_are_explained(arguments, said):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0 and said in result.output, result.output


def test_an_unknown_gate_suggests_a_known_one():
    result = CliRunner().invoke(app, ["explain", "component/shft"])
    assert isinstance(result.exception, SanakitError) and "component/shift" in result.exception.found


@pytest.mark.parametrize("action", ["latents", "embeddings", "adapters", "activations", "generated", "components"])
def test_a_bare_off_of_yaml_is_off_for_every_monitor(action):
    assert getattr(make_config({}, [f"monitors.{action}=off"]).monitors, action) == "off"


def test_the_packaged_bases_are_those_on_disk():
    assert set(info.base_cards()) == {p.name for p in (Path(info.__file__).parents[1] / "assets" / "cores").iterdir()}
