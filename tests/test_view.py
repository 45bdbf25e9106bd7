"""The terminal: whole words at 80 columns, hints where something is open, plain text where no colour is wanted."""

import io
import json
import logging
import os
import re
import sys
import warnings

import pytest

from sanakit.cli import main
from sanakit.cli.progress import json_progress, progress_display
from sanakit.cli.silence import silence_libraries
from sanakit.cli.verdict_view import print_validation
from sanakit.decision import decide_swap
from sanakit.reporting.strategies import outcome

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
VALIDATION["decision"] = decide_swap(
    VALIDATION,
    component=[
        {"metric": "PSNR", "base": 26.7, "candidate": 22.9, "difference_low": -4.1, "difference_high": -3.5},
        {"metric": "latent values per image", "base": 1152, "candidate": 576},
    ],
)


@pytest.fixture
def shown(monkeypatch, capsys, tmp_path):
    def show(columns, options=None, **environment):
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in ({"COLUMNS": str(columns)} | environment).items():
            monkeypatch.setenv(name, value)
        print_validation(VALIDATION, tmp_path / "run", tmp_path / "r.html", **(options or {}))
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize("columns", [80, 120])
def test_every_gate_reads_whole_in_a_narrow_terminal(shown, columns):
    text = shown(columns, {"verbose": True})
    table = text.split("wiring: ")[0]
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
    assert table.split("stage component")[1].count("SK0321") == 1, "the gate that passed has no hint"
    assert "mask" in table and "wiring: inconclusive: component/repeatable-embeddings" in text
    assert "mask" not in shown(columns).split("stage component")[1], "gates that passed are counted"
    assert "1 of 2 gates passed" in shown(columns)


def test_the_decision_is_the_first_six_lines_and_all_that_is_quiet(shown):
    first, *rest = shown(200).splitlines()[:6]
    assert first.startswith(
        "Not yet: minilm in tiny-sana. component/repeatable-embeddings (SK0321) could not be decided."
    )
    assert [line.split()[0] for line in rest] == ["gains", "losses", "cost", "risk", "next"]
    assert "latent values per image 1,152 to 576 (-50%)" in rest[0] and "PSNR 26.7 to 22.9 (-3.80 dB)" in rest[1]
    assert rest[-1].split(maxsplit=1)[1] == VALIDATION["next"]
    assert len(shown(200, {"quiet": True}).splitlines()) == 6


def test_forty_columns_are_read_without_a_table(shown):
    text = shown(40, {"verbose": True})
    assert not set(text) & set("│┃─━") and "component/repeatable-embeddings" in text
    assert all(len(line) <= 40 for line in text.splitlines() if not line.startswith(("next", "run", "report")))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_locale_that_lacks_a_character_shows_it_as_an_escape(encoding, monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "argv", ["sanakit", "--version"])
    with pytest.raises(SystemExit):
        main()
    print("caf\xe9 \u2713")
    sys.stdout.flush()
    shown = streams["stdout"].buffer.getvalue().splitlines()[-1]
    expected = {"ascii": b"caf\\xe9 \\u2713", "latin-1": b"caf\xe9 \\u2713"}
    assert shown == expected.get(encoding, "caf\xe9 \u2713".encode())


def test_a_strategy_that_left_says_why_and_has_no_forecast():
    race = {"budget_steps": 100, "recommended": "finetune"}
    row = {"predicted_steps": 320.0, "predicted_steps_low": 200.0, "predicted_steps_high": None, "relative_error": 2.4}
    assert outcome(row | {"steps": [0, 25, 50], "finalist": False}, race) == "left: clearly worse at step 50"
    assert outcome(row | {"steps": [0, 50, 100], "finalist": True}, race) == "320 (200 to open)"
    arrived = row | {"predicted_steps": 25.0, "steps": [0, 25, 50], "finalist": False}
    assert outcome(arrived, race).startswith("25")
    stated = row | {"steps": [0, 25], "finalist": False, "dropped": "three others are better"}
    assert outcome(stated, race) == "left: three others are better"


def test_other_libraries_are_silent_and_our_own_warnings_are_one_line(monkeypatch, capsys):
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY", "PYTHONWARNINGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with warnings.catch_warnings():
        silence_libraries()
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        warnings.warn("this tensor is not writable", UserWarning, stacklevel=1)
        warnings.warn("SK0208: config.json states no scaling", UserWarning, stacklevel=1)
        logging.getLogger("bitsandbytes.backends").warning("Failed to load CPU gemm_4bit_forward")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "warning: SK0208: config.json states no scaling\n")
    assert os.environ["TQDM_DISABLE"] == "1" and os.environ["TRANSFORMERS_VERBOSITY"] == "error"


def test_progress_for_a_program_is_json_lines(capsys):
    progress = json_progress()
    for done in (1, 2, 5):
        progress("encoding", done, 5)
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(row["label"], row["done"], row["total"]) for row in rows] == [("encoding", 1, 5), ("encoding", 5, 5)]


def test_colour_only_where_it_is_wanted(shown):
    assert "\x1b" not in shown(80), "no terminal"
    colours = r"\x1b\[(\d+;)*3[1-7]m"
    assert re.search(colours, shown(80, FORCE_COLOR="1"))
    assert not re.search(colours, shown(80, FORCE_COLOR="1", NO_COLOR="1"))


@pytest.mark.parametrize("forced", ["", "1"])
def test_progress_on_something_that_is_no_terminal_is_lines_on_standard_error(forced, monkeypatch, capsys):
    """FORCE_COLOR, which Jupyter sets for every command of a notebook, colours texts and makes no terminal."""
    monkeypatch.setenv("FORCE_COLOR", forced)
    with progress_display() as progress:
        for done in range(1, 6):
            progress("encoding", done, 5)
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == ["encoding (5)"]


def test_scores_of_samples_are_short_lines(capsys):
    from rich.console import Console

    from sanakit.cli.verdict_view import _print_scores

    row = {"label": "kid (EffLite0)", "base": 0.5, "candidate": 0.58, "better": "lower", "of_true_images": -0.01}
    row |= {"difference_low": 0.04, "difference_high": 0.12}
    broken = {"label": "theirs", "base": None, "candidate": None, "error": "theirs: OSError: no file"}
    evaluation = {"num_prompts": 24, "num_seeds": 2, "reference": 24, "rows": [row, broken]}
    _print_scores(Console(width=80), evaluation)
    lines = capsys.readouterr().out.splitlines()
    assert "kid (EffLite0): 0.5 to 0.58, worse" in lines and "  true images: -0.01" in lines
    assert "theirs: theirs: OSError: no file" in lines and any("24 held-out prompts" in line for line in lines)
    _print_scores(Console(width=80), {})
    assert capsys.readouterr().out == ""
