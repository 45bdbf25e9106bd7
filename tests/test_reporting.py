"""The report: one file, nothing active in it, nothing lost when files are missing."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from sanakit.errors import SanakitError
from sanakit.reporting import charts, write_report
from sanakit.reporting.ci import markdown, write_junit
from sanakit.reporting.compare import leaderboard, write_comparison
from sanakit.reporting.folder import embedded, read_lines
from sanakit.reporting.steps import READING, drift_charts
from sanakit.reporting.strategies import loss_by_sigma

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
        "relative_error": 0.1,
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
    rows += [row | {"split": "train", "by_sigma": None, "loss": row["loss"] * 0.9} for row in rows]
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
    for text in (
        "Component baseline",
        "Plan",
        "Drift over steps",
        "alarm",
        "inside",
        "git.commit",
        "not in sight",
        "Thin lines",
    ):
        assert text in html
    assert "outside the folder" not in html


def test_a_folder_with_a_verdict_alone_is_enough_and_without_one_is_refused(run_dir):
    assert "Gates" in write_report(run_dir, run_dir / "r.html").read_text()
    (run_dir / "validation.json").unlink()
    with pytest.raises(SanakitError, match="SK0109"):
        write_report(run_dir, run_dir / "r.html")


def test_null_and_left_out_keys_are_fine(run_dir):
    """Only what the contract calls required is there; everything that may be null is."""
    gate = {"gate": "g", "code": "SK0204", "verdict": "fail", "value": None, "ci_low": None, "ci_high": math.nan}
    validation = {
        "base": "b",
        "candidate": "c",
        "kind": "text_encoder",
        "verdict": "fail",
        "next": "",
        "strategy": None,
    }
    stages = {"component": {"verdict": "fail", "gates": [gate], "seconds": None}}
    (run_dir / "validation.json").write_text(json.dumps(validation | {"stages": stages}))
    (run_dir / "component.json").write_text(json.dumps({"rows": [{"metric": "m", "base": None, "candidate": 1}]}))
    (run_dir / "plan.json").write_text(json.dumps({"groups": [{"group": "caption", "action": "keep"}], "notes": None}))
    (run_dir / "metrics.jsonl").write_text(
        '{"stage": "smoke", "strategy": "s", "step": 0, "split": "held_out", "loss": null}\n{"sta'
    )
    html = write_report(run_dir, run_dir / "r.html").read_text()
    assert "1 of 1 gates failed: g (SK0204)." in html and "Component baseline" in html and "Strategies" not in html
    nothing_yet = validation | {"stages": {}, "strategy": {"recommended": None, "candidates": None}}
    (run_dir / "validation.json").write_text(json.dumps(nothing_yet))
    assert "No gate has been measured." in write_report(run_dir, run_dir / "r.html").read_text()


def test_a_broken_line_is_forgiven_at_the_end_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "line\u2028separator"}\n{"a"', encoding="utf-8")
    assert read_lines(path) == [{"a": "line\u2028separator"}]
    path.write_text('{"a"\n{"a": 1}\n')
    with pytest.raises(json.JSONDecodeError):
        read_lines(path)


@pytest.mark.parametrize(
    "name", ["../outside.png", "/etc/passwd", "link.png", "config.yaml", "figures", "gone.png", "a\0.png", ""]
)
def test_only_pictures_inside_the_folder_are_embedded(run_dir, name):
    fill(run_dir)
    (run_dir / "link.png").symlink_to(run_dir.parent / "outside.png")
    assert embedded(run_dir, name) is None
    assert embedded(run_dir, "figures/a.png") == "data:image/png;base64,iVBORw=="


def test_the_worst_channel_of_each_step_is_one_line_and_places_read_together_are_several():
    base = READING | {"name": "n", "stage": "full"}
    worst = [base | {"step": s, "where": f"channel {s}", "value": 1.0} for s in (1, 2, 3)]
    (chart,) = drift_charts(worst)
    assert chart["svg"].count("<polyline") == 1 and chart["svg"].count("ring") == 0
    both = [base | {"step": s, "where": w, "value": 1.0, "alarm": s == 2} for s in (1, 2) for w in ("low", "high")]
    (chart,) = drift_charts(both)
    assert chart["svg"].count("<polyline") == 2 and chart["svg"].count("ring") == 2


def test_last_step_of_each_strategy_and_one_colour_everywhere():
    rows = [
        {"stage": "smoke", "strategy": n, "split": "held_out", "step": s, "loss": 1.0, "by_sigma": {"0.5": s}}
        for n in ("a", "b")
        for s in (9, 3)
    ]
    (chart,) = loss_by_sigma("smoke", rows, {"b": 4, "a": 2})
    assert chart["rows"] == [["a", 9, 0.5, 9], ["b", 9, 0.5, 9]]
    assert "line s2" in chart["svg"] and "line s4" in chart["svg"] and "line s0" not in chart["svg"]


@pytest.mark.parametrize("log", [False, True])
def test_scale_hits_its_ends(log):
    place = charts.scale(2, 8, 100, 300, log=log)
    assert (place(2), place(8), place(4 if log else 5)) == pytest.approx((100, 300, 200))
    assert charts.scale(1, 1, 0, 10, log=log)(1) == 5


@pytest.mark.parametrize("log", [False, True])
def test_extreme_points_lie_on_the_edges_of_the_plot(log):
    chart = charts.line_chart([("a", [(4, 3), (0, 1), (2, 9)])], title="t", x_label="x", y_label="y", log_y=log)
    dots = [tuple(map(float, m)) for m in re.findall(r'class="dot s0" cx="([\d.]+)" cy="([\d.]+)"', chart)]
    assert [x for x, _ in dots][::2] == [charts.LEFT, charts.WIDTH - charts.RIGHT]  # sorted by x
    assert [y for _, y in dots][:2] == [charts.HEIGHT - charts.BOTTOM, charts.TOP]


def test_bars_reach_from_zero_to_the_extremes():
    chart = charts.bar_chart([("a", [-1.0, 3.0])], title="t", y_label="y")
    bars = [tuple(map(float, m)) for m in re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', chart)]
    assert bars[1][0] == charts.TOP and sum(bars[0]) == charts.HEIGHT - charts.BOTTOM
    assert bars[1][0] + bars[1][1] == pytest.approx(bars[0][0], abs=0.1)  # both touch zero


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_charts_skip_what_is_no_number(bad):
    chart = charts.line_chart(
        [("a", [(0, 1), (1, bad), (2, 3)])], title="t", x_label="x", y_label="y", marks=[(1, bad)]
    )
    assert chart.count("<circle") == 2 and "nan" not in chart and "inf" not in chart
    assert charts.line_chart([("a", [(0, bad)])], title="t", x_label="x", y_label="y") == ""
    bars = charts.bar_chart([("a", [1.0, bad])], title="t", y_label="y")
    assert bars.count("<rect") == 1 and "nan" not in bars and "inf" not in bars
    assert charts.margin_bar(bad, bad, bad, 1.0) == "" and charts.margin_bar(1.0, bad, bad, 2.0)
    assert charts.forecast_bar(bad, bad, bad, 1.0) == "" and "span" in charts.forecast_bar(bad, 1.0, bad, 2.0)


@pytest.mark.parametrize("low, high", [(0, 1), (-3.2, 17), (1e-9, 3e-9), (0, 0), (999, 12345)])
def test_ticks_are_few_round_and_inside(low, high):
    found = charts.ticks(low, high)
    assert 1 <= len(found) <= 6 and all(low <= t <= high * (1 + 1e-9) for t in found)


@pytest.mark.parametrize("low, high", [(0.3, 9), (1e-6, 1e6), (0.01, 1)])
def test_log_ticks_are_few_and_inside(low, high):
    found = charts.log_ticks(low, high)
    assert 2 <= len(found) <= 12 and all(low <= t <= high for t in found)


def test_chart_text_is_escaped():
    series = [(EVIL, [(0, 1), (1, 2)])]
    drawn = charts.line_chart(series, title=EVIL, x_label=EVIL, y_label=EVIL) + charts.legend([EVIL])
    assert "<script" not in drawn and 'aria-label="&lt;script&gt;' in drawn


def test_importing_it_loads_nothing_heavy():
    heavy = ["torch", "diffusers", "transformers", "pandas", "numpy"]
    program = f"import sys, sanakit.reporting; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def chart_files(run_dir):
    """What the newer sections of the report are drawn from."""
    channels = {
        side: {"mean": [0.1, -0.2], "std": [1.0, 0.5], "skewness": [0, 1], "kurtosis": [2, 3]}
        for side in ("base", "candidate")
    }
    curve = {
        "title": "Power spectra",
        "x": "half cycles a picture",
        "y": "share",
        "series": {"pictures": [[1, 0.9], [2, 0.1]]},
    }
    component = {
        "rows": [],
        "channels": channels,
        "curves": [curve],
        "prompts": [EVIL, "b"],
        "similarity": {"candidate": [[1, 0.2], [0.2, 1]]},
    }
    (run_dir / "component.json").write_text(json.dumps(component))
    validation = json.loads((run_dir / "validation.json").read_text())
    validation["policy"] = {"name": "strict"}
    validation["stages"]["component"]["gates"][0] |= {"samples": 100, "samples_needed": 250, "at_least": True}
    race = {
        "steps": [0, 4, 8],
        "relative_errors": [2.0, 1.6, 1.4],
        "predicted_steps": 20,
        "predicted_steps_low": 15,
        "seconds_per_step": 0.5,
    }
    validation["strategy"]["candidates"][0] |= race
    (run_dir / "validation.json").write_text(json.dumps(validation))
    (run_dir / "strategy.json").write_text(json.dumps({"budget_steps": 8, "target": {"measure": "x"}}))


def test_every_section_that_is_measured_is_drawn_with_its_table(run_dir):
    chart_files(run_dir)
    html = write_report(run_dir, run_dir / "r.html").read_text(encoding="utf-8")
    for title in ("Channels at a glance", "Power spectra", "Cosine of prompts, candidate", "The race"):
        drawn = html.split(f"<h3>{title}")[1].split("</section>")[0]
        assert 'role="img"' in drawn and "<table>" in drawn, title
    assert 'class="band s0"' in html and 'class="goal"' in html and 'class="cell below"' in html
    assert (
        "about 150 more samples than 100 would decide" in html and "at least 1.5" in html and "<dd>strict</dd>" in html
    )
    assert "20 steps of 500 ms" in html and "<summary>strategy.json</summary>" in html
    assert "<script" not in html


def test_a_leaderboard_puts_the_verdict_first_and_then_the_error(run_dir, tmp_path_factory):
    chart_files(run_dir)
    others = tmp_path_factory.mktemp("runs")
    for name, verdict, ratio in (("near", "pass", 1.1), ("far", "pass", 1.4), ("failed", "fail", 1.0)):
        shutil.copytree(run_dir, others / name)
        path = others / name / "validation.json"
        validation = json.loads(path.read_text()) | {"verdict": verdict, "candidate": f"{name}{EVIL}"}
        validation["stages"]["component"]["gates"][0] |= {"code": "SK0504", "value": ratio, "verdict": verdict}
        path.write_text(json.dumps(validation))
    rows = leaderboard([run_dir, *(others / n for n in ("failed", "far", "near"))])
    assert [row["run"] for row in rows] == ["near", "far", run_dir.name, "failed"]
    assert rows[0]["error_ratio"] == 1.1 and rows[0]["not_passed"] == [] and rows[-1]["not_passed"]
    html = write_comparison(rows, run_dir / "c.html").read_text(encoding="utf-8")
    assert html.count("<tr") > 4 and "<script" not in html and 'role="img"' in html
    with pytest.raises(SanakitError, match="SK0109"):
        leaderboard([others])


def test_ci_summaries_say_what_to_do(run_dir):
    chart_files(run_dir)
    validation = json.loads((run_dir / "validation.json").read_text())
    text = markdown(validation)
    assert "inconclusive" in text and "150 more samples" in text and "<script" not in text and "policy strict" in text
    write_junit(validation, run_dir / "j.xml")
    suite = ElementTree.parse(run_dir / "j.xml").getroot()[0]
    assert suite.get("skipped") == "1" and "SK0203" in suite[0][0].get("message")


@pytest.mark.parametrize("page", ["report", "compare"])
def test_no_horizontal_scroll_at_390_px_and_no_console_message(run_dir, page):
    chromium = shutil.which("chromium")
    if chromium is None:
        assert not os.environ.get("SANAKIT_REQUIRE_BROWSER"), "chromium must be installed here"
        pytest.skip("chromium is not installed (apt-get install chromium)")
    fill(run_dir)
    chart_files(run_dir)
    if page == "report":
        report = write_report(run_dir, run_dir / "r.html")
    else:
        report = write_comparison(leaderboard([run_dir]), run_dir / "r.html")
    assert report.stat().st_size < 3e6
    # scripts are forbidden inside the report, so a frame measures it from outside
    probe = run_dir / "probe.html"
    probe.write_text(
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
        "--enable-logging=stderr",
        f"--user-data-dir={run_dir / 'profile'}",
        "--virtual-time-budget=4000",
        "--dump-dom",
        probe.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ":CONSOLE" not in done.stderr, done.stderr
    title = done.stdout.split("<title>")[1].split("</title>")[0]
    scroll, client = map(int, title.split("/"))
    assert scroll <= client, title
