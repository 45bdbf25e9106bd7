"""A component alone, policies and summaries through the command line."""

import json

import pytest
from typer.testing import CliRunner

from sanakit.cli import swap  # noqa: F401  adds the commands
from sanakit.cli.app import app
from sanakit.errors import SanakitError

run = CliRunner().invoke
BARE = ("validate", "--stage", "component", "--base", "none", "--data", "openclipart", "--json")


def test_a_bare_vae_needs_no_base_and_another_policy_judges_without_measuring_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = (*BARE, "--vae", "pca-f16c16", "--run-dir", "run", "--junit", "j.xml", "--markdown", "m.md")
    first = run(app, [*options])
    validation = json.loads(first.stdout)
    assert first.exit_code == 0 and validation["base"] == "none" and validation["verdict"] == "pass", first.output
    assert validation["policy"]["name"] == "default" and "all" in (tmp_path / "m.md").read_text().lower()
    rows = json.loads((tmp_path / "run" / "component.json").read_text())["rows"]
    assert rows and all(row["base"] is None for row in rows)
    (tmp_path / "own.yaml").write_text("thresholds: {component/seams: 1.0}")
    second = json.loads(run(app, [*options, "--policy", "own.yaml"]).stdout)
    old, new = validation["stages"]["component"], second["stages"]["component"]
    assert old["measured"] == new["measured"] and old["seconds"] == new["seconds"]
    assert old["fingerprint"] != new["fingerprint"]
    assert {g["gate"] for g in new["gates"] if g["verdict"] == "fail"} == {"component/seams"}
    assert second["policy"]["name"] == "own.yaml" and second["verdict"] == "fail"


def test_a_bare_text_encoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    validation = json.loads(run(app, [*BARE, "--text-encoder", "wordllama", "--run-dir", "run"]).stdout)
    assert validation["kind"] == "text_encoder" and validation["next"].startswith("sanakit swap-text-encoder")
    assert {"component/mask", "component/padding-side"} <= {
        g["gate"] for g in validation["stages"]["component"]["gates"]
    }


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--stage", "smoke", "--base", "none", "--vae", "pca-f16c16"), "SK0104"),
        (("--stage", "component", "--base", "none"), "SK0104"),
        (("--stage", "component", "--vae", "pca-f16c16", "--policy", "strikt"), "SK0113"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path, monkeypatch, options, code):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SanakitError, match=code):
        run(app, ["validate", *options, "--data", "openclipart", "--run-dir", "run"], catch_exceptions=False)
