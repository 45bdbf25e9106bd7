"""docs/tutorial.md from its first line to its last: quickly on a small world, and as it is written."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_interop_cli import sanakit

PAGE = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CODES = {"swap-vae": (0, 1, 4), "validate": (0, 1, 4)}  # verdicts; what else is run ends with 0


def run_page(monkeypatch, capsys, change=lambda text: text, skipped=0):
    """Every block in its order; what each command printed."""
    told = []
    for kind, text in BLOCKS[skipped:]:
        if kind == "python":
            exec(compile(change(text), "docs/tutorial.md", "exec"), {})
            continue
        for line in change(text).splitlines():
            command = shlex.split(line)
            assert command[0] == "sanakit"
            code = sanakit(monkeypatch, *command[1:])
            printed = capsys.readouterr()
            assert code in CODES.get(command[1], (0,)), (line, printed.err)
            told.append(printed.out)
    return told


def drawn_image(name):
    return np.asarray(Image.open(name)).astype(int)


def check_results(told):
    assert "\nNot yet: " in told[0] or "\nDo not swap: " in told[0]
    validation = json.loads(Path("first/validation.json").read_text())
    assert list(validation["stages"]) == ["component", "smoke", "full"]
    assert validation["stages"]["full"]["steps"] == 16 and len(validation["evaluation"]["rows"]) == 6
    assert "caption-recovery (EffLite0)" in told[2]
    first, base = (json.loads(Path(f"{name}-scores.json").read_text()) for name in ("first", "base"))
    names = [score["metric"] for score in base["scores"]]
    assert names == [score["metric"] for score in first["scores"]] and len(names) == 6
    assert [score["of_true_images"] for score in first["scores"]] == [s["of_true_images"] for s in base["scores"]]
    page = Path("compare.html").read_text(encoding="utf-8")
    assert "compare.html" in told[5] and "Scores of what is drawn" in page and "base-scores.json, images of" in page
    assert "SanakitPipeline" in told[6] and "not stock" in told[6]
    card = Path("exported/README.md").read_text()
    assert 'SanakitPipeline.from_pretrained("DIR")("a red apple")' in card
    assert abs(drawn_image("apple.png") - drawn_image("again.png")).max() <= 1


def test_the_tutorial_runs_on_a_small_world(small_world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # its images are there already

    def smaller(text):
        text = text.replace("--model tiny-sana", f"--model {small_world['base'].removeprefix('path:')}")
        return text.replace("tiny-sana", small_world["base"]).replace("dc-f16c16", "pca-f8c4")

    check_results(run_page(monkeypatch, capsys, smaller, skipped=1))


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check_results(run_page(monkeypatch, capsys))
