"""The report: one file, nothing active in it, nothing lost when files are missing."""

import json
import math
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from sample_run import EVIL, chart_files, fill, verdict_alone

from sanakit.errors import SanakitError
from sanakit.reporting import charts, write_report
from sanakit.reporting.ci import markdown, write_junit
from sanakit.reporting.compare import leaderboard, write_comparison
from sanakit.reporting.folder import embedded, read_lines
from sanakit.reporting.steps import READING, drift_charts
from sanakit.reporting.strategies import loss_by_sigma


@pytest.fixture
def run_dir(tmp_path):
    verdict_alone(tmp_path)
    return tmp_path


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
    ("name", "text", "said"),
    [
        ("validation.json", '{"a', "validation.json: "),
        ("validation.json", "[1]", "validation.json holds list, expected dict"),
        ("validation.json", '{"stages": {"smoke": {}}, "verdict": "good"}', ""),
        ("plan.json", '{"groups": [1]}', "TypeError"),
        ("metrics.jsonl", '{"step": 1}\n', "KeyError"),
    ],
)
def test_a_folder_that_holds_what_no_run_writes_is_refused(run_dir, name, text, said):
    (run_dir / name).write_text(text)
    with pytest.raises(SanakitError, match=f"SK0109.*does not read as a run: .*{said}"):
        write_report(run_dir, run_dir / "r.html")
    if name == "validation.json":
        with pytest.raises(SanakitError, match="SK0109"):
            leaderboard([run_dir])


@pytest.mark.parametrize(
    "name", ["../outside.png", "/etc/passwd", "link.png", "config.yaml", "figures", "gone.png", "a\0.png", ""]
)
def test_only_images_inside_the_folder_are_embedded(run_dir, name):
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
    ticks = charts.ticks(low, high)
    assert 1 <= len(ticks) <= 6 and all(low <= t <= high * (1 + 1e-9) for t in ticks)


@pytest.mark.parametrize("low, high", [(0.3, 9), (1e-6, 1e6), (0.01, 1)])
def test_log_ticks_are_few_and_inside(low, high):
    ticks = charts.log_ticks(low, high)
    assert 2 <= len(ticks) <= 12 and all(low <= t <= high for t in ticks)


def test_chart_text_is_escaped():
    series = [(EVIL, [(0, 1), (1, 2)])]
    drawn = charts.line_chart(series, title=EVIL, x_label=EVIL, y_label=EVIL) + charts.legend([EVIL])
    assert "<script" not in drawn and 'aria-label="&lt;script&gt;' in drawn


def test_importing_it_loads_nothing_heavy():
    heavy = ["torch", "diffusers", "transformers", "pandas", "numpy"]
    program = f"import sys, sanakit.reporting; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_section_that_is_measured_is_drawn_with_its_table(run_dir):
    chart_files(run_dir)
    html = write_report(run_dir, run_dir / "r.html").read_text(encoding="utf-8")
    for title in (
        "Channels at a glance",
        "Power spectra",
        "Cosine of prompts, candidate",
        "The race",
        "Feature distance",
    ):
        drawn = html.split(f"<h3>{title}")[1].split("</section>")[0]
        assert 'role="img"' in drawn and "<table>" in drawn, title
    assert 'class="band s0"' in html and 'class="goal"' in html and 'class="cell below"' in html
    assert (
        "about 150 more samples than 100 would decide: --set component.num_images=250" in html
        and "at least 1.5" in html
        and "<dd>strict</dd>" in html
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
