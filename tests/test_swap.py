"""The main job through the command line, on images, encoders and VAEs that are real but few."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

IMAGES = 160


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base folder with an untrained small core, and a folder of dataset: minutes become seconds."""
    from sanakit.core.dit import new_core
    from sanakit.data import load_images

    root = tmp_path_factory.mktemp("world")
    core = new_core(
        {
            "in_channels": 16,
            "out_channels": 16,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 3,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 256,
            "sample_size": 6,
            "patch_size": 1,
        },
        seed=0,
    )
    core.save_pretrained(root / "base")
    card = {"vae": "pca-f16c16", "text_encoder": "wordllama", "image_size": 96, "flow_shift": 1.0, "embedded": True}
    (root / "base" / "card.json").write_text(json.dumps(card))
    source = load_images("openclipart")
    (root / "images").mkdir()
    for i in range(0, 20 * IMAGES, 20):
        (root / "images" / f"{i}.webp").write_bytes(source.images[i])
        (root / "images" / f"{i}.txt").write_text("\n".join(source.captions[i]))
    return root


SMALL = (
    "--budget-steps",
    "8",
    "--set",
    "smoke.held_out=16",
    "--set",
    "train.batch_size=8",
    "--set",
    "train.max_steps=16",
    "--set",
    "train.start_draws=64",
    "--set",
    "evaluate.num_prompts=8",
    "--set",
    "evaluate.num_seeds=1",
)


def sanakit(*arguments, cwd):
    command = [sys.executable, "-c", "from sanakit.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


def swap(world, kind, candidate, *more, run_dir="run", base=None):
    return sanakit(
        f"swap-{kind}",
        "--candidate",
        candidate,
        "--base",
        base or f"path:{world / 'base'}",
        "--data",
        world / "images",
        "--run-dir",
        run_dir,
        *SMALL,
        *more,
        cwd=world,
    )


@pytest.fixture(scope="module")
def finished(world):
    """swap-vae through all stages, forced: an untrained base cannot be expected to pass every gate."""
    result = swap(world, "vae", "pca-f16c32", "--stages", "component,smoke,full", "--force", "--json")
    assert "Traceback" not in result.stderr, result.stderr
    return result


def test_three_stages_write_every_file_and_one_json_document(world, finished):
    validation = json.loads(finished.stdout)
    assert finished.returncode == {"pass": 0, "fail": 1, "inconclusive": 4}[validation["verdict"]]
    assert list(validation["stages"]) == ["component", "smoke", "full"]
    assert validation["kind"] == "vae" and validation["candidate"] == "pca-f16c32"
    run = world / "run"
    for name in (
        "config.yaml",
        "plan.json",
        "provenance.json",
        "metrics.jsonl",
        "readings.jsonl",
        "ledger.jsonl",
        "validation.json",
        "component.json",
        "model/card.json",
    ):
        assert (run / name).is_file(), name
    for stage in validation["stages"].values():
        assert {"verdict", "gates", "seconds"} <= stage.keys()
        for gate in stage["gates"]:
            assert gate["ci_low"] is None or gate["ci_low"] <= gate["value"] <= gate["ci_high"]
    names = {row["name"] for row in validation["strategy"]["candidates"]}
    assert {"naive", "finetune", "scratch", "align", "align-blocks"} <= names
    report = (world / "reports" / "run.html").read_text()
    assert "pca-f16c32" in report and "<script" not in report


def test_alignment_starts_below_naive(world, finished):
    rows = {row["name"]: row for row in json.loads(finished.stdout)["strategy"]["candidates"]}
    assert rows["finetune"]["initial_loss"] < rows["naive"]["initial_loss"]
    near, far = (rows[name]["feature_distance"] for name in ("finetune", "naive"))
    assert list(near) == ["0.1", "0.5", "0.9"] and len(near["0.5"]) == 1 + 3  # patch embedding and blocks
    assert all(near[sigma][0] < far[sigma][0] for sigma in near)
    chosen = json.loads((world / "run" / "start.json").read_text())  # by train.start, auto
    assert rows["finetune"]["start"] == chosen["start"] and rows["naive"]["start"] == "naive"
    assert rows["finetune"]["losses"][0] == pytest.approx(rows[chosen["start"]]["losses"][0], rel=1e-5)
    assert chosen["relative_errors"][chosen["start"]] == min(chosen["relative_errors"].values())
    plan = json.loads((world / "run" / "plan.json").read_text())
    assert plan["start_draws"] == 64 and any("train.start_draws" in note for note in plan["notes"])


def test_a_finished_stage_is_not_done_again(world, finished):
    before = json.loads((world / "run" / "validation.json").read_text())
    lines = (world / "run" / "metrics.jsonl").read_text()
    again = swap(world, "vae", "pca-f16c32", "--stages", "component,smoke,full", "--force", "--json")
    after = json.loads(again.stdout)
    assert after["stages"] == before["stages"]
    assert (world / "run" / "metrics.jsonl").read_text() == lines
    assert "encoding" not in again.stderr


def test_a_run_folder_of_another_configuration_is_refused(world, finished):
    result = swap(world, "vae", "pca-f16c16", run_dir="run")
    assert result.returncode == 2
    assert "error[SK0105]" in result.stderr and "pca-f16c32" in result.stderr
    assert (world / "run" / "validation.json").is_file()


def test_the_model_samples_and_serves_as_a_base(world, finished):
    result = sanakit(
        "sample", "--model", "run/model", "--prompt", "a red apple", "--out", "apple.png", "--num-steps", 2, cwd=world
    )
    assert result.returncode == 0, result.stderr
    assert (world / "apple.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_an_adapter_is_trained_saved_and_sampled(world):
    """--set adapter.name reaches the smoke race, the model on disk and the sampler;
    the export is not a stock pipeline."""
    result = swap(
        world, "vae", "pca-f16c32", "--stages", "smoke,full", "--force", "--strategy", "finetune",
        "--set", "adapter.name=conv-latents", "--json", run_dir="adapted",
    )  # fmt: skip
    assert "Traceback" not in result.stderr and result.stdout, result.stderr
    model = world / "adapted" / "model"
    assert json.loads((model / "adapters.json").read_text()) == {"adapters": ["conv-latents"]}
    assert json.loads((world / "adapted" / "plan.json").read_text())["adapters"] == ["conv-latents"]
    drawn = sanakit(
        "sample", "--model", model, "--prompt", "a red apple", "--out", "adapted.png", "--num-steps", 2, cwd=world
    )
    assert drawn.returncode == 0, drawn.stderr
    exported = sanakit("export", "--run-dir", "adapted", "--out", "pipeline", cwd=world)
    assert exported.returncode == 0 and "conv-latents" in exported.stdout + exported.stderr, exported.stderr
    refused = swap(world, "vae", "pca-f16c32", "--set", "adapter.name=resampler-caption", run_dir="refused")
    assert refused.returncode == 2 and "joins tokens" in refused.stderr


def test_wrong_scale_fails_component_and_stops_there(world):
    result = swap(world, "vae", "pca-f16c32", "--set", "vae.scaling_factor=5.0", "--json", run_dir="scaled")
    validation = json.loads(result.stdout)
    assert result.returncode == 1
    assert list(validation["stages"]) == ["component"]
    failed = [g for g in validation["stages"]["component"]["gates"] if g["verdict"] == "fail"]
    assert {g["code"] for g in failed} == {"SK0203"}
    assert "scaling_factor=" in failed[0]["hint"]
    assert validation["next"] == "sanakit explain SK0203"


def test_text_encoder_swap(world):
    few = ("--set", "smoke.strategies=[align,align+head,distill]")
    result = swap(world, "text-encoder", "wordllama", "--force", "--json", *few, run_dir="text", base="tiny-sana")
    assert result.stdout, result.stderr
    validation = json.loads(result.stdout)
    assert validation["kind"] == "text_encoder"
    assert {"component/prompts-differ", "component/padding"} <= {
        g["gate"] for g in validation["stages"]["component"]["gates"]
    }
    assert list(validation["strategy"]["prompt_gain"]) == ["all"]  # the captions of a folder are of no stated kind
    rows = {row["name"]: row for row in validation["strategy"]["candidates"]}
    assert rows["align"]["caption_r2"] > 0 and rows["align"]["caption_pairing"] == "tokens"
    assert (
        rows["distill"]["steps"][-1] > 0 and rows["distill"]["seconds_once"] > 0 == rows["align+head"]["seconds_once"]
    )


def test_a_base_that_ignores_its_captions_cannot_judge_a_text_encoder(world):
    result = swap(world, "text-encoder", "minilm?layer=auto", "--force", run_dir="deaf")
    assert result.returncode == 2 and "SK0503" in result.stderr and "Traceback" not in result.stderr
    measured = json.loads((world / "deaf" / "validation.json").read_text())["layers"]  # of stage component, before it
    assert measured["used"] == measured["best"] in [row["layer"] for row in measured["layers"]]


def test_validate_writes_junit_and_train_resumes(world, finished):
    result = sanakit(
        "validate", "--stage", "component", "--run-dir", "run", "--junit", "junit.xml", "--json", cwd=world
    )
    assert "testsuite" in (world / "junit.xml").read_text(), result.stderr
    train = (
        "train",
        "--config",
        world / "run" / "config.yaml",
        "--run-dir",
        "trained",
        "--set",
        "train.strategy=finetune",
        "--set",
        "train.checkpoint_every=8",
        "--set",
        "train.gradual=0.5",
        "--set",
        "train.log_every=4",
        "--json",
    )
    trained = sanakit(*train, cwd=world)
    assert json.loads(trained.stdout)["stages"]["full"]["gates"], trained.stderr
    assert (world / "trained" / "checkpoints" / "LATEST").read_text() == "step-00000016"
    (world / "trained" / "checkpoints" / "LATEST").write_text("step-00000008")
    (world / "trained" / "validation.json").unlink()
    weights = (world / "trained" / "model" / "diffusion_pytorch_model.safetensors").read_bytes()
    resumed = sanakit(*train, cwd=world)
    assert "training finetune" in resumed.stderr
    rows = [json.loads(line) for line in (world / "trained" / "steps.jsonl").read_text().splitlines()]
    moved = {row["step"]: row["trained_parameters"] for row in rows}  # the middle block joins at step 8
    assert moved[4] == moved[8] < moved[12] == moved[16]
    assert (world / "trained" / "model" / "diffusion_pytorch_model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("swap-vae", "--candidate", "dc-f16c3"), "SK0101"),
        (("swap-vae", "--candidate", "path:/nowhere"), "SK0106"),
        (("swap-vae", "--candidate", "dc-f16c32", "--base", "tiny-sanaa"), "SK0101"),
        (("swap-vae", "--candidate", "dc-f16c32", "--stages", "smok"), "SK0104"),
        (("swap-vae", "--candidate", "dc-f16c32", "--strategy", "finetun"), "SK0101"),
        (("swap-vae", "--candidate", "dc-f16c32", "--data", "empty"), "SK0401"),
        (("train",), "SK0104"),
        (("train", "--preset", "swap-vea"), "SK0104"),
        (("train", "--preset", "swap-vae", "--set", "train.max_step=3"), "SK0104"),
        (("train", "--preset", "swap-vae", "--set", "train.max_steps=many"), "SK0104"),
        (("train", "--config", "missing.yaml"), "SK0104"),
        (("report", "empty"), "SK0109"),
        (("sample", "--model", "nothing", "--prompt", "x", "--out", "x.png"), "SK0101"),
    ],
)
def test_bad_input_is_an_error_with_cause_and_fix(world, tmp_path, arguments, code):
    (tmp_path / "empty").mkdir()
    result = sanakit(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert f"error[{code}]" in result.stderr
    assert "cause:" in result.stderr and "fix:" in result.stderr and "Traceback" not in result.stderr
    assert not list(Path(tmp_path).glob("runs/*/validation.json"))
