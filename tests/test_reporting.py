"""The report: one file, nothing active in it, nothing lost when files are missing."""

import json
import math
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from sample_run import EVIL, chart_files, fill, verdict_alone

from sanakit.cli.view import print_leaderboard
from sanakit.errors import SanakitError
from sanakit.records import read_lines
from sanakit.reporting import charts, conclusions, report_path, write_report
from sanakit.reporting.ci import markdown, write_junit
from sanakit.reporting.compare import differing, leaderboard, write_comparison
from sanakit.reporting.component import MEASURED, compared
from sanakit.reporting.drift import why
from sanakit.reporting.drift_summary import sides_text, summary
from sanakit.reporting.folder import embedded
from sanakit.reporting.score_table import PROTOCOL, read_scores, score_table, score_warnings
from sanakit.reporting.steps import READING, drift_charts
from sanakit.reporting.strategies import CANDIDATE, loss_by_sigma, loss_curves, race_chart


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
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="no object"):
        read_lines(path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("validation.json", '{"a', "validation.json: "),
        ("validation.json", "[1]", "validation.json holds list, expected dict"),
        ("validation.json", '{"stages": {"smoke": {}}, "verdict": "good"}', ""),
        ("plan.json", '{"groups": [1]}', "no list of objects"),
        ("metrics.jsonl", '{"step": 1}\n', "KeyError"),
        ("figures.json", "[1]", "no list of objects"),
        ("component.json", '{"rows": 5}', "no list of objects"),
        ("component.json", '{"deep": ' + "[" * 100_000, "component.json: "),
    ],
)
def test_a_folder_that_holds_what_no_run_writes_is_refused(run_dir, name, text, said):
    (run_dir / name).write_text(text)
    with pytest.raises(SanakitError, match=f"SK0109.*does not read as a run: .*{said}"):
        write_report(run_dir, run_dir / "r.html")
    if name in ("validation.json", "component.json", "figures.json"):
        with pytest.raises(SanakitError, match="SK0109"):
            write_comparison(leaderboard([run_dir]), run_dir / "c.html")


QUALITY = {"gate": "full/quality", "code": "SK0504", "metric": "m", "verdict": "pass", "threshold": 1}


@pytest.mark.parametrize(
    "edited",
    [
        {"decision": {"answer": "perhaps", "cost": {}}},
        {"stages": {"full": {"verdict": "pass", "gates": [QUALITY | {"value": "much"}]}}},
        {"stages": {"full": {"verdict": "pass", "gates": [QUALITY | {"value": 10**400}]}}},
        {"strategy": {"recommended": "a", "candidates": [{"name": "a", "predicted_steps": "many"}]}},
        {"strategy": {"recommended": "a", "candidates": [{"name": "a", "steps": 5, "relative_errors": 5}]}},
        {"strategy": {"recommended": "a", "candidates": [{"name": "a", "steps": [1], "relative_errors": [10**400]}]}},
    ],
    ids=lambda edited: str(edited)[:80],
)
def test_a_leaderboard_refuses_what_it_cannot_rank(run_dir, edited, capsys):
    written = json.loads((run_dir / "validation.json").read_text())
    (run_dir / "validation.json").write_text(json.dumps(written | edited))
    with pytest.raises(SanakitError, match="SK0109.*does not read as a run"):
        leaderboard([run_dir])


def test_a_leaderboard_shows_whatever_it_ranks(run_dir, capsys):
    written = json.loads((run_dir / "validation.json").read_text())
    best = {"name": "a", "steps": [1, 2], "relative_errors": [math.inf, 2], "predicted_steps": math.nan}
    written |= {"base": None, "candidate": 5, "strategy": {"recommended": "a", "candidates": [best]}}
    written["stages"]["component"]["seconds"] = math.inf
    (run_dir / "validation.json").write_text(json.dumps(written))
    rows = leaderboard([run_dir])
    assert write_comparison(rows, run_dir / "c.html").is_file() and not differing(rows)
    print_leaderboard(rows, None)
    assert "nan" in capsys.readouterr().out


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


def test_a_curve_of_one_step_is_no_curve():
    row = {"stage": "smoke", "strategy": "reuse", "step": 0, "split": "held_out", "loss": 0.5, "by_sigma": {"0.5": 0.5}}
    colours = {"reuse": 0}
    assert loss_curves("smoke", [row], colours) == [] and len(loss_by_sigma("smoke", [row], colours)) == 1
    assert len(loss_curves("smoke", [row, row | {"step": 5}], colours)) == 1
    arm = CANDIDATE | {"name": "reuse", "raced": True, "steps": [0], "relative_errors": [1.0]}
    assert race_chart([arm], {}, colours) == []
    assert len(race_chart([arm | {"steps": [0, 5], "relative_errors": [1.2, 1.0]}], {}, colours)) == 1


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


PAIR = {"section": "compared", "stage": "smoke", "prompt": "a red <b>apple</b>", "split": "held out", "file": "f/c.png"}


def test_the_first_screen_answers_before_anything_else(run_dir):
    chart_files(run_dir)
    (run_dir / "f").mkdir()
    sides = {side: f"f/{side[0]}.png" for side in ("truth", "base", "candidate")}
    for file in sides.values():
        (run_dir / file).write_bytes(b"\x89PNG")
    (run_dir / "figures.json").write_text(json.dumps([PAIR | sides, PAIR | sides | {"base": "../outside.png"}]))
    rows = [{"metric": "PSNR", "unit": "dB", "base": 26.7, "candidate": 22.9, "better": "higher"}]
    rows[0] |= {"difference_low": -4.1, "difference_high": -3.5}
    (run_dir / "component.json").write_text(json.dumps({"rows": rows}))
    html = write_report(run_dir, run_dir / "r.html").read_text(encoding="utf-8")
    first, rest = html.split("</header>")
    for said in (
        "? Not yet",
        "could not be decided",
        "22.90 dB",
        "the base&#39;s VAE: 26.70 dB",
        "true image: a red &lt;b&gt;",
    ):
        assert said in first, said
    assert first.count('<figure class="pair">') == 1, "an image outside the folder is not shown"
    assert "<strong>1 open question</strong>" in first and ">sanakit ls</pre>" in first
    order = ["Gained and lost", "Strategies", "Samples", "Reconstruction", "Gates", "Raw data"]
    contents = rest.split("</nav>")[0]
    places = [contents.index(f">{name}</a>") for name in order if f">{name}</a>" in contents]
    assert places == sorted(places) and len(places) >= 5
    for target in re.findall(r'href="#([^"]+)"', contents):
        assert f'id="{target}"' in rest, target
    row = rest.split('id="changes"')[1].split("</table>")[0]
    assert '<tr class="inconclusive">' in row and "-3.80 dB" in row and "-4.10 dB to -3.50 dB" in row
    assert 'class="pass"' not in row, "a loss is never green"


def test_gates_that_passed_are_folded_and_counted(run_dir):
    validation = json.loads((run_dir / "validation.json").read_text())
    gates = validation["stages"]["component"]["gates"]
    gates.append(gates[0] | {"gate": "component/fine", "verdict": "pass", "hint": ""})
    (run_dir / "validation.json").write_text(json.dumps(validation))
    section = write_report(run_dir, run_dir / "r.html").read_text().split('id="gates"')[1].split("</section>")[0]
    shown, folded = section.split("<details", 1)
    assert "component/x" in shown and "component/fine" not in shown
    assert "1 of 2 gates passed" in folded and "component/fine" in folded


def test_a_change_within_noise_is_the_same():
    row = MEASURED | {"metric": "SSIM", "base": 0.9, "candidate": 0.905, "better": "higher"}
    assert compared(row)["change"] == "+0.6%"
    shown = compared(row | {"difference_low": -0.01, "difference_high": 0.02})
    assert (shown["change"], shown["sense"]) == ("same", "")


def test_a_dropped_arm_has_a_reason_and_no_forecast(run_dir):
    chart_files(run_dir)
    validation = json.loads((run_dir / "validation.json").read_text())
    race = validation["strategy"]
    lost = race["candidates"][0] | {"name": "lora", "steps": [0, 2, 4], "predicted_steps": 320.0, "finalist": False}
    race |= {"candidates": [race["candidates"][0] | {"finalist": True}, lost], "budget_steps": 8}
    (run_dir / "validation.json").write_text(json.dumps(validation))
    table = write_report(run_dir, run_dir / "r.html").read_text().split('id="race"')[1].split("</table>")[0]
    row = table.split("<strong>lora</strong>")[1].split("</tr>")[0]
    assert "left the race" in row and "clearly worse at step 4" in row and "320" not in row


ENDS = [("a", [(1, 3.0), (101, 1.2)]), ("b", [(1, 3.0)])]
SIDES = [("reference", [1.0, 0.5]), ("current", [1.1, 0.1])]
SHIFTS = {"mean": [0.1, -0.3], "spread": [0.5, 0.2]}
SPECTRA = {"reference": [(0.5, 1.0), (1.0, 0.0)], "current": [(0.5, 1.0), (1.0, -1.0)]}
CLOUDS = {"reference": [[-1, 0], [1, 0]], "current": [[2, 0], [2, 0]]}
ALARM = READING | {"alarm": True, "step": 5, "where": "channel 1"}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (conclusions.nearest_at_the_end(ENDS), "a ends nearest the base: 1.2 times its error after 100 steps."),
        (conclusions.nearest_start({"a": [0.2, 0.4], "b": [0.1, 0.1]}), "b starts nearest the base: 0.1"),
        (conclusions.largest_loss([("a", [(0.1, 1.0), (0.9, 2.0)])]), "largest at sigma 0.9: 2 (a)"),
        (conclusions.ranges([("base", [0.5, None, -1.0])]), "base -1 to 0.5"),
        (conclusions.farthest_cell(["base sd"], [[0.1, -0.4]]), "base sd of channel 1, -0.4"),
        (conclusions.curve("Power spectra", [("base", [(1, 0.9), (2, 0.1)])]), "base 10.0%"),
        (conclusions.curve("Token norms", [("base", [(0, 1.0), (1, 3.0)])]), "Median: base 2."),
        (conclusions.channels_apart(SIDES), "Channel 1 differs most: 0.5 to 0.1."),
        (conclusions.features_moved(SHIFTS, 0.2), "3 of 4 cells moved by 0.2 sd or more, most of them in: spread."),
        (conclusions.features_moved({"mean": [0.1]}, 0.2), "0 of 1 cells moved by 0.2 sd or more."),
        (conclusions.spectra_apart(SPECTRA), "at frequency 1: x0.1."),
        (conclusions.clouds_apart(CLOUDS), "are 2 spreads of the reference apart."),
        (conclusions.clouds_apart(CLOUDS | {"reference": [[0, 0], [0, 0]]}) or "none", "none"),
        (conclusions.cosines([[1, 0.2], [0.2, 1]]), "prompts: 0.2"),
        (conclusions.alarms([ALARM, READING]), "1 of 2 readings raised an alarm, the first at step 5 at channel 1."),
    ],
)  # fmt: skip
def test_every_chart_says_what_to_conclude(told, said):
    assert said in told


def test_the_page_of_another_folder_of_the_same_name_is_not_overwritten(run_dir, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    other = tmp_path_factory.mktemp("other") / run_dir.name
    shutil.copytree(run_dir, other)
    pages = [write_report(folder, report_path(folder)) for folder in (run_dir, other, run_dir)]
    assert pages[0] == pages[2] != pages[1] and pages[0].name == f"{run_dir.name}.html"


def test_a_comparison_warns_where_runs_differ_and_links_their_reports(run_dir, tmp_path_factory):
    chart_files(run_dir)
    folder = tmp_path_factory.mktemp("runs")
    for name, base, source in (("a", "tiny-sana", "x"), ("b", "other", "y")):
        shutil.copytree(run_dir, folder / name)
        path = folder / name / "validation.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base": base}))
        (folder / name / "provenance.json").write_text(json.dumps({"data": {"source": source, "fingerprint": source}}))
    rows = leaderboard([folder / "a", folder / "b"])
    told = " ".join(differing(rows))
    assert "differ in their base (other, tiny-sana)" in told and "differ in their data (x, y)" in told
    write_report(folder / "a", folder / "a.html")
    html = write_comparison(rows, folder / "c.html").read_text(encoding="utf-8")
    assert "differ in their base" in html and '<a href="a.html">report</a>' in html and 'href="b.html"' not in html
    assert html.count("Not yet") == 3 and "20 steps of finetune" in html


def score_row(candidate, better, low, high, **more):
    row = {"label": "kid (EffLite0)", "title": "KID", "base": 0.25, "candidate": candidate, "better": better}
    return row | {"difference_low": low, "difference_high": high, "of_true_images": 0.0125, "error": ""} | more


def test_a_comparison_shows_the_scores_of_candidate_and_base(run_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    recovered = score_row(0.875, "higher", -0.01, 0.02, label="caption-recovery", of_true_images=None)
    scored = {
        "a": {"num_prompts": 24, "rows": [score_row(0.375, "lower", 0.1, 0.15), recovered]},
        "b": {"num_prompts": 16, "rows": [score_row(0.125, "lower", -0.2, -0.1)]},
        "c": {"num_prompts": 0, "rows": [], "note": "evaluate.num_prompts is 0"},
    }
    for name, evaluation in scored.items():
        shutil.copytree(run_dir, folder / name)
        path = folder / name / "validation.json"
        told = {"candidate": f"vae-{name}", "evaluation": evaluation | {"num_seeds": 2, "seed": 0}}
        path.write_text(json.dumps(json.loads(path.read_text()) | told))
    file = folder / "base.json"
    facts = {
        "metric": "kid",
        "features": "EffLite0",
        "value": 0.5,
        "of_true_images": None,
        "better": "lower",
        "error": "",
    }
    file.write_text(
        json.dumps({"model": EVIL, "data": "x", "num_prompts": 64, "num_seeds": 2, "seed": 0, "scores": [facts]})
    )
    rows = leaderboard([folder / name for name in scored])
    assert [len(row["scores"]) for row in rows] == [2, 1, 0]
    table = score_table([*rows, read_scores(file)])
    assert list(table["labels"]) == ["kid (EffLite0)", "caption-recovery"] and len(table["rows"]) == 3
    assert table["labels"]["kid (EffLite0)"] == {"better": "lower", "true": 0.0125}
    assert table["rows"][0]["said"].startswith("beside its base better in 0, worse in 1 of 2; 24 prompts, 2 samples")
    html = write_comparison(rows, folder / "c.html", [read_scores(file)]).read_text(encoding="utf-8")
    assert '0.375<br><span class="small">base 0.25, worse' in html and "base 0.25, better" in html
    assert "true images 0.0125" in html and "not drawn alike (24 prompts" in html and "<script" not in html
    assert "Scores of what is drawn" not in write_comparison(rows[2:], folder / "d.html").read_text(encoding="utf-8")
    alike = [{"candidate": "a", "scores": [1], "scored_with": dict.fromkeys(PROTOCOL, 3.0)} for _ in range(2)]
    assert not score_warnings(alike)
    for key in PROTOCOL:
        other = alike[0] | {"scored_with": alike[0]["scored_with"] | {key: 4.0}}
        assert "not drawn alike" in score_warnings([*alike, other])[0], key
    file.write_text("[]")
    with pytest.raises(SanakitError, match="SK0104.*base.json holds no scores"):
        read_scores(file)


def test_a_drift_page_names_the_effect_what_moved_and_what_to_do():
    evidence = {
        "latents": {
            "effects": {"mean": [0.1, -0.2], "high freq.": [0.0, 1.3]},
            "farthest": {"current": [(4, 0.2), (7, 0.1)]},
        }
    }
    carried = {"latents": {"current": {4: SimpleNamespace(label="apple.png", uri="data:x")}}}
    shown = summary("drift", evidence, carried)
    assert (
        shown["effect"]
        == "Largest effect: high freq. of channel 1 (latents), 1.30 standard deviations up, a large one."
    )
    assert shown["moved"] == "Moved most: apple.png, row 7." and "JPEG quality" in shown["advice"]
    assert shown["moved_images"] == [{"label": "apple.png", "image": "data:x"}]
    still = summary("no-drift", evidence, carried)
    assert still["advice"].startswith("Nothing has to be done") and "within chance" in still["effect"]
    assert still["moved"] == ""
    few = {"name": "samples", "title": "too few images to say: 24, 32 needed", "where": "current", "alarm": False}
    assert why("inconclusive", [few]) == "Inconclusive: too few images to say: 24, 32 needed (current)."
    assert "more images" in summary("inconclusive", {}, {})["advice"]
    open_one = summary("inconclusive", evidence, carried)
    assert open_one["effect"].endswith("which may be chance.") and open_one["moved"] == ""
    rows = [{"kind": "latents", "count": 1234, "encoder": "dc-f16c16", "data": None}]
    assert sides_text({"current": rows}) == ["current: 1,234 latents of dc-f16c16, data not stated"]
