"""A component alone, policies and summaries through the command line."""

import json

import pytest
from typer.testing import CliRunner

from sanakit.cli import swap  # noqa: F401  adds the commands
from sanakit.cli.app import app
from sanakit.config import known_keys
from sanakit.drift.shown import shown_rows
from sanakit.errors import SanakitError
from sanakit.reporting.ci import advice

run = CliRunner().invoke
BARE = ("validate", "--stage", "component", "--base", "none", "--data", "openclipart", "--json")


def test_a_bare_vae_needs_no_base_and_another_policy_judges_without_measuring_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = (*BARE, "--vae", "pca-f16c16", "--run-dir", "run", "--junit", "j.xml", "--markdown", "m.md")
    first = run(app, [*options])
    validation = json.loads(first.stdout)
    assert first.exit_code == 0 and validation["base"] == "none" and validation["verdict"] == "pass", first.output
    assert "data: openclipart: 4,815 images, " in first.stderr  # beside the document, never in it
    kept = json.loads((tmp_path / "run" / "provenance.json").read_text())["data"]["description"]
    assert (kept["images"], kept["fit"], kept["set_aside"]) == (4815, "pad", 0)
    assert validation["decision"]["answer"] == "not-yet" and validation["decision"]["next"] == validation["next"]
    assert validation["policy"]["name"] == "default" and "all" in (tmp_path / "m.md").read_text().lower()
    rows = json.loads((tmp_path / "run" / "component.json").read_text())["rows"]
    assert rows and all(row["base"] is None for row in rows)
    shown = shown_rows(tmp_path / "run" / "latents.snapshot.safetensors", "latents", [0])[0]
    assert shown.image.shape == (48, 48, 3) and shown.label  # what a page about drift shows
    (tmp_path / "own.yaml").write_text("thresholds: {component/seams: 1.0}\nallowed_loss: {psnr: 1}")
    second = json.loads(run(app, [*options, "--policy", "own.yaml"]).stdout)
    assert second["policy"]["allowed_loss"] == {"psnr": 1.0} and second["decision"]["answer"] == "do-not"
    old, new = validation["stages"]["component"], second["stages"]["component"]
    assert old["measured"] == new["measured"] and old["seconds"] == new["seconds"]
    assert old["fingerprint"] != new["fingerprint"]
    assert {g["gate"] for g in new["gates"] if g["verdict"] == "fail"} == {"component/seams"}
    assert second["policy"]["name"] == "own.yaml" and second["verdict"] == "fail"


def test_more_images_make_narrower_intervals_and_more_samples_judge(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    intervals = []
    for count in (16, 144):
        options = (*BARE, "--vae", "pca-f16c16", "--run-dir", str(count), "--set", f"component.num_images={count}")
        gates = json.loads(run(app, [*options]).stdout)["stages"]["component"]["gates"]
        judged = [g for g in gates if g["ci_low"] is not None]
        assert judged and {g["samples"] for g in judged} == {count}
        intervals.append({g["gate"]: g["ci_high"] - g["ci_low"] for g in judged})
        assert f"worst of {count}" in (tmp_path / str(count) / "figures.json").read_text()
    wider = [few / many for few, many in zip(intervals[0].values(), intervals[1].values(), strict=True)]
    assert 1.5 < sorted(wider)[len(wider) // 2] < 6, "the root of 9 is 3"


@pytest.mark.parametrize(
    ("gate", "key"),
    [
        ("component/shift", "component.num_images"),
        ("smoke/mask", "smoke.held_out"),
        ("full/samples", ""),
        ("tune/reconstruction", "component.num_images"),
        ("acme/own", ""),
    ],
)
def test_an_undecided_gate_names_the_key_that_brings_more_samples(gate, key):
    said = advice({"gate": gate, "hint": "", "samples": 8, "samples_needed": 40})
    assert said == "about 32 more samples than 8 would decide" + (f": --set {key}=40" if key else "")
    assert not key or key in known_keys()


def test_a_bare_text_encoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    validation = json.loads(run(app, [*BARE, "--text-encoder", "wordllama", "--run-dir", "run"]).stdout)
    assert shown_rows(tmp_path / "run" / "embeddings.snapshot.safetensors", "embeddings", [0])[0].label
    assert validation["kind"] == "text_encoder" and validation["next"].startswith("sanakit swap-text-encoder")
    assert {"component/mask", "component/padding-side"} <= {
        g["gate"] for g in validation["stages"]["component"]["gates"]
    }


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--stage", "smoke", "--base", "none", "--vae", "pca-f16c16"), "SK0104"),
        (("--stage", "component", "--base", "none"), "SK0130"),
        (("--stage", "component", "--vae", "pca-f16c16", "--policy", "strikt"), "SK0113"),
        (("--stage", "component", "--vae", "pca-f16c16", "--junit", "."), "SK0104"),
        (("--stage", "component", "--vae", "pca-f16c16", "--markdown", "."), "SK0104"),
        (("--stage", "component", "--vae", "pca-f16c16", "--set", "component.num_images=4"), "SK0104"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path, monkeypatch, options, code):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SanakitError, match=code):
        run(app, ["validate", *options, "--data", "openclipart", "--run-dir", "run"], catch_exceptions=False)
