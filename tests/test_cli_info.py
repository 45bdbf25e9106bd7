"""ls, describe, doctor, explain."""

import errno
import json
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from sanakit.cli import info, main
from sanakit.cli.app import app
from sanakit.doctor import REASONS
from sanakit.errors import SanakitError

run = CliRunner().invoke


def test_ls_json_rows_have_the_public_keys():
    rows = json.loads(run(app, ["ls", "--json"]).stdout)
    assert {row["kind"] for row in rows} == {
        "vaes",
        "text-encoders",
        "adapters",
        "drift",
        "gates",
        "datasets",
        "strategies",
        "metrics",
        "bases",
    }
    assert all(row.keys() == {"kind", "name", "title", "origin", "embedded", "licence", "error"} for row in rows)
    assert all(row["error"] is None and row["title"] for row in rows)


def test_ls_of_one_kind_and_of_none():
    assert "dc-f16c32" in run(app, ["ls", "vaes"]).stdout
    with pytest.raises(SanakitError, match="SK0101.*did you mean vaes"):
        run(app, ["ls", "vae"], catch_exceptions=False)


def test_describe_shows_the_card():
    facts = json.loads(run(app, ["describe", "dc-f16c32", "--json"]).stdout)
    assert facts["card"]["quality"]["held_out_psnr"] > 20
    told = run(app, ["describe", "openmoji"]).stdout
    assert "licence" in told and "captions_per_image" in told


def test_doctor_finds_this_environment_sound():
    rows = json.loads(run(app, ["doctor", "--json"]).stdout)
    assert all(row.keys() == {"check", "status", "detail", "fix"} for row in rows)
    assert not [row for row in rows if row["status"] == "fail"]


def test_explain():
    assert "scaling_factor" in run(app, ["explain", "sk0203"]).stdout
    with pytest.raises(SanakitError, match="SK0108"):
        run(app, ["explain", "SK9999"], catch_exceptions=False)


def exit_code(monkeypatch, *arguments):
    """What the shell sees of `sanakit ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["sanakit", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


def test_an_error_is_its_message_on_standard_error(monkeypatch, capsys):
    assert exit_code(monkeypatch, "explain", "SK9999") == 2
    output = capsys.readouterr()
    with pytest.raises(SanakitError) as raised:
        run(app, ["explain", "SK9999"], catch_exceptions=False)
    assert output.out == "" and output.err == f"{raised.value}\n  more:  sanakit explain SK0108\n"


def test_an_error_that_rank_0_meets_too_is_one_line_on_the_others(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert exit_code(monkeypatch, "explain", "SK9999") == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and output.err.startswith("rank 1: error[SK0108]: ")


@pytest.mark.parametrize("arguments", [["ls", "--nope"], ["nope"], ["explain"], ["describe", "nope"]])
def test_bad_usage_is_2_without_a_traceback(monkeypatch, capsys, arguments):
    assert exit_code(monkeypatch, *arguments) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err and "Traceback" not in output.err


@pytest.mark.parametrize(
    ("raised", "code"), [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "No space left on device", "runs"), 3)]
)
def test_interruption_and_a_full_disk(monkeypatch, capsys, raised, code):
    def stop():
        raise raised

    monkeypatch.setattr(info, "registries", stop)
    assert exit_code(monkeypatch, "ls") == code
    assert ("error[SK0903]" in capsys.readouterr().err) == (code == 3)


def test_doctor_sees_a_missing_and_an_old_package_and_a_cache_that_is_a_file(monkeypatch, tmp_path):
    versions = {"torch": "2.9.1+cu130", "emoji": None, "peft": None}
    monkeypatch.setattr("sanakit.doctor._version", lambda name: versions.get(name, "9999"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "file" / "cache"))
    result = run(app, ["doctor", "--json"])
    status = {row["check"]: row["status"] for row in json.loads(result.stdout) if row["status"] != "ok"}
    assert result.exit_code == 3
    assert status == {"torch": "fail", "peft": "fail", "emoji": "warn", "cache folder": "fail"}


def test_doctor_sees_a_cache_folder_whose_name_is_not_utf8(monkeypatch, tmp_path):
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "caf\udce9"))
    rows = {row["check"]: row for row in json.loads(run(app, ["doctor", "--json"]).stdout)}
    assert rows["cache folder"]["status"] == "fail" and rows["cache folder"]["detail"].endswith("caf\\udce9")
    assert "UTF-8" in rows["cache folder"]["fix"] and "caf\\udce9" in rows["disk"]["detail"]


def test_doctors_floors_are_those_of_the_package(monkeypatch):
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    stated = [r for r in map(Requirement, project["dependencies"]) if r.marker is None or r.marker.evaluate()]
    monkeypatch.setattr("sanakit.doctor._version", lambda name: "0.1")  # older than every floor
    rows = {row["check"]: row for row in json.loads(run(app, ["doctor", "--json"]).stdout)}
    old = {
        r.name: rows[r.name] for r in stated if r.name in rows
    }  # a package installed before the last floor was added
    assert len(old) >= len(stated) - 1 and REASONS.keys() <= old.keys()
    for requirement in stated:
        if requirement.name in old:
            row = old[requirement.name]
            assert row["status"] == "fail" and f"pip install '{requirement.name}{requirement.specifier}'" in row["fix"]
    demo = [Requirement(r).name.replace("_", "-") for r in project["optional-dependencies"]["demo"]]
    assert all(rows[name]["status"] == "ok" for name in demo)


def test_a_component_on_disk_is_measured_not_described():
    with pytest.raises(SanakitError, match=r"SK0101.*no name of `sanakit ls`") as caught:
        run(app, ["describe", "path:DIR"], catch_exceptions=False)
    assert "validate --stage component --base none --vae path:DIR" in caught.value.fix
