"""ls, describe, doctor, explain."""

import json

import pytest
from typer.testing import CliRunner

from sanakit.cli import info  # noqa: F401
from sanakit.cli.app import app
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
    assert "licence" in run(app, ["describe", "openmoji"]).stdout


def test_doctor_finds_this_environment_sound():
    rows = json.loads(run(app, ["doctor", "--json"]).stdout)
    assert all(row.keys() == {"check", "status", "detail", "fix"} for row in rows)
    assert not [row for row in rows if row["status"] == "fail"]


def test_explain():
    assert "scaling_factor" in run(app, ["explain", "sk0203"]).stdout
    with pytest.raises(SanakitError, match="SK0108"):
        run(app, ["explain", "SK9999"], catch_exceptions=False)
