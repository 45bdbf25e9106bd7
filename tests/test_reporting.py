"""The report: one file, nothing active in it, nothing lost when files are missing."""

import json
import math
import os
import shutil
import subprocess

import pytest

from sanakit.errors import SanakitError
from sanakit.reporting import charts, write_report

EVIL = "<script>alert(1)</script>\"'&"


@pytest.fixture
def run_dir(tmp_path):
    gate = {
        "gate": "component/x",
        "code": "SK0203",
        "metric": EVIL,
        "value": 1.0,
        "ci_low": 0.5,
        "ci_high": 2.0,
        "threshold": 1.5,
        "verdict": "inconclusive",
        "hint": EVIL,
    }
    candidate = {
        "name": "finetune",
        "title": "t",
        "predicted_steps": None,
        "predicted_steps_low": 3.0,
        "predicted_steps_high": None,
        "initial_loss": 1.0,
        "held_out_loss": 0.5,
        "one_step_error": 0.1,
        "trained_parameters": 12,
    }
    validation = {
        "schema_version": 1,
        "base": "base",
        "candidate": EVIL,
        "kind": "vae",
        "verdict": "inconclusive",
        "next": "sanakit ls",
        "stages": {"component": {"verdict": "inconclusive", "gates": [gate], "seconds": 2.0}},
        "strategy": {"recommended": "finetune", "candidates": [candidate]},
    }
    (tmp_path / "validation.json").write_text(json.dumps(validation))
    return tmp_path


def fill(run_dir):
    (run_dir / "component.json").write_text(
        json.dumps(
            {
                "rows": [{"metric": "PSNR", "unit": "dB", "base": 20, "candidate": 21.5, "better": "higher"}],
                "channels": {
                    side: {m: [0.1, -0.2] for m in ("mean", "std", "skewness", "kurtosis")}
                    for side in ("base", "candidate")
                },
            }
        )
    )
    (run_dir / "plan.json").write_text(
        json.dumps(
            {
                "groups": [
                    {"group": "input", "action": "align", "parameters": 1, "parameters_before": 2, "note": EVIL}
                ],
                "notes": [EVIL],
            }
        )
    )
    rows = [
        {
            "stage": "smoke",
            "strategy": "finetune",
            "step": s,
            "split": "held_out",
            "loss": 1 / (s + 1),
            "by_sigma": {"0.1": 1, "0.9": 2},
        }
        for s in (0, 5, 10)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    reading = {
        "stage": "full",
        "name": "welch-max",
        "title": "t",
        "value": 3.0,
        "step": 5,
        "where": "channel 1",
        "ci_low": None,
        "ci_high": None,
        "p_value": 0.001,
        "threshold": 0.01,
        "alarm": True,
    }
    (run_dir / "readings.jsonl").write_text(json.dumps(reading) + "\n")
    (run_dir / "figures").mkdir()
    (run_dir / "figures" / "a.png").write_bytes(b"\x89PNG")
    (run_dir.parent / "outside.png").write_bytes(b"\x89PNG")
    (run_dir / "figures.json").write_text(
        json.dumps(
            [
                {"section": "samples", "title": "inside", "caption": EVIL, "file": "figures/a.png"},
                {"section": "samples", "title": "outside the folder", "caption": "", "file": "../outside.png"},
            ]
        )
    )
    (run_dir / "ledger.jsonl").write_text(json.dumps({"name": EVIL, "reason": EVIL}) + "\n")
    (run_dir / "provenance.json").write_text(json.dumps({"git": {"commit": "abc"}}))
    (run_dir / "config.yaml").write_text("base: x\n")


def test_everything_is_shown_and_markup_is_harmless(run_dir):
    fill(run_dir)
    html = write_report(run_dir, run_dir / "out" / "r.html").read_text()
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "default-src 'none'" in html and "http" not in html.replace("http-equiv", "").replace("xmlns", "")
    for text in ("Component baseline", "Plan", "Drift over steps", "alarm", "inside", "git.commit", "not in sight"):
        assert text in html
    assert "outside the folder" not in html


def test_a_folder_with_a_verdict_alone_is_enough_and_without_one_is_refused(run_dir):
    assert "Gates" in write_report(run_dir, run_dir / "r.html").read_text()
    (run_dir / "validation.json").unlink()
    with pytest.raises(SanakitError, match="SK0109"):
        write_report(run_dir, run_dir / "r.html")


def test_scale_hits_its_ends_and_charts_skip_what_is_no_number():
    place = charts.scale(2, 6, 100, 300)
    assert (place(2), place(6), place(4)) == (100, 300, 200)
    assert charts.scale(1, 1, 0, 10)(1) == 5
    chart = charts.line_chart([("a", [(0, 1), (1, math.nan), (2, 3)])], title="t", x_label="x", y_label="y")
    assert chart.count("<circle") == 2 and "nan" not in chart
    assert charts.line_chart([("a", [(0, math.nan)])], title="t", x_label="x", y_label="y") == ""
    assert "inf" not in charts.bar_chart([("a", [1.0, math.inf])], title="t", y_label="y")


def test_no_horizontal_scroll_at_390_px(run_dir):
    chromium = shutil.which("chromium")
    if chromium is None:
        assert not os.environ.get("SANAKIT_REQUIRE_BROWSER"), "chromium must be installed here"
        pytest.skip("chromium is not installed (apt-get install chromium)")
    fill(run_dir)
    report = write_report(run_dir, run_dir / "r.html")
    # scripts are forbidden inside the report, so a frame measures it from outside
    page = run_dir / "probe.html"
    page.write_text(
        f'<body style="margin:0"><iframe id="f" src="{report.name}" style="width:390px;height:800px;border:0"></iframe>'
        "<script>onload=()=>{const d=f.contentDocument.documentElement;document.title=d.scrollWidth+'/'+d.clientWidth}</script>"
    )
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--allow-file-access-from-files",
        f"--user-data-dir={run_dir / 'profile'}",
        "--virtual-time-budget=4000",
        "--dump-dom",
        page.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    title = dom.split("<title>")[1].split("</title>")[0]
    scroll, client = map(int, title.split("/"))
    assert scroll <= client, title
