"""The terminal: whole words at 80 columns, hints where something is open, plain text where no colour is wanted."""

import re

import pytest

from sanakit.cli.view import print_validation, progress_display

GATE = {
    "gate": "component/repeatable-embeddings",
    "code": "SK0321",
    "metric": "relative change [bold] when encoded again",
    "value": 0.123456,
    "ci_low": 0.1,
    "ci_high": 0.2,
    "threshold": 0.15,
    "at_least": False,
    "samples": 16,
    "samples_needed": 40,
    "verdict": "inconclusive",
    "hint": "switch dropout off",
}
PASSED = GATE | {"gate": "component/mask", "verdict": "pass", "ci_low": None, "ci_high": None}
VALIDATION = {
    "base": "tiny-sana",
    "candidate": "minilm",
    "verdict": "inconclusive",
    "next": "sanakit explain SK0321",
    "stages": {"component": {"verdict": "inconclusive", "seconds": 3.0, "gates": [PASSED, GATE]}},
    "strategy": {"recommended": None, "candidates": []},
}


@pytest.fixture
def shown(monkeypatch, capsys, tmp_path):
    def show(columns, **environment):
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in ({"COLUMNS": str(columns)} | environment).items():
            monkeypatch.setenv(name, value)
        print_validation(VALIDATION, tmp_path / "run", tmp_path / "r.html")
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize("columns", [80, 120])
def test_every_gate_reads_whole_in_a_narrow_terminal(shown, columns):
    text = shown(columns)
    table = text.split("inconclusive: component")[0]
    assert all(len(line) <= columns for line in table.splitlines())
    for whole in (
        "repeatable-embeddings",
        "0.1235",
        "[0.1, 0.2]",
        "<= 0.15",
        "+18%",
        "[bold]",
        "SK0321",
        "component.num_images=40",
    ):
        assert whole in text.replace("\n", ""), whole
    assert text.count("SK0321") == 2, "the gate that passed has no hint"
    *_, verdict, cost, last = text.strip().splitlines()
    assert verdict == "inconclusive: component/repeatable-embeddings"
    assert cost.startswith("cost so far: 3 s") and last == "next: sanakit explain SK0321"


def test_colour_only_where_it_is_wanted(shown):
    assert "\x1b" not in shown(80), "no terminal"
    colours = r"\x1b\[(\d+;)*3[1-7]m"
    assert re.search(colours, shown(80, FORCE_COLOR="1"))
    assert not re.search(colours, shown(80, FORCE_COLOR="1", NO_COLOR="1"))


def test_progress_on_something_that_is_no_terminal_is_lines_on_standard_error(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with progress_display() as progress:
        for done in range(1, 6):
            progress("encoding", done, 5)
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == ["encoding (5)"]
