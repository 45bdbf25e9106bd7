"""The HTML report of a run folder: the decision first, then what it stands on."""

import hashlib
from pathlib import Path

from sanakit.decision import MEASURES, decide_swap
from sanakit.decision.comparison import METRIC_TITLES
from sanakit.records import Row, read_json, read_lines, read_text
from sanakit.reporting.ci import in_doubt
from sanakit.reporting.component import (
    MEASURED,
    channel_charts,
    channel_heat,
    compared,
    component_readings,
    measured_curve,
    measured_layers,
    similarity_maps,
)
from sanakit.reporting.first_screen import SIDES, change_rows, first_screen, side_by_side
from sanakit.reporting.folder import figures, flattened, read_as_run
from sanakit.reporting.gates import open_gates, stage_rows, why
from sanakit.reporting.page import environment, write_html
from sanakit.reporting.samples import evaluated_samples
from sanakit.reporting.steps import READING, drift_charts
from sanakit.reporting.strategies import (
    CANDIDATE,
    chosen_word,
    cost_rows,
    distance_chart,
    loss_by_sigma,
    loss_curves,
    prompt_gains,
    race_answer,
    race_chart,
    with_forecast_bars,
)

LEDGER_SHOWN = 50
HEAD = 1000  # characters of a page in which its mark stands
RAW = ("validation.json", "component.json", "strategy.json", "plan.json")
STAGES = ("component", "smoke", "full")
DATA: Row = {"source": "", "images": None, "captions": None, "captions_per_image": None, "set_aside": 0, "fit": "crop"}
DATA |= {"area_share": 0.0, "sizes": "", "examples": []}
GROUP = {"action": "", "parameters": None, "parameters_before": None, "note": ""}


def write_report(run_dir: Path, out: Path) -> Path:
    """Write one self-contained file. Raises SK0109 when the folder is no run;
    other missing files leave sections out."""
    with read_as_run(run_dir):
        html = environment().get_template("template.html.j2").render(collect(run_dir))
    return write_html(html, out)


def report_path(run_dir: Path) -> Path:
    """reports/<run>.html, or with a hash of the folder where that page is of another folder of the same name."""
    mark, folder = page_mark(run_dir), Path("reports")
    plain = folder / f"{run_dir.resolve().name}.html"
    try:
        taken = plain.is_file() and mark not in plain.read_text(encoding="utf-8", errors="replace")[:HEAD]
    except OSError:
        taken = False
    return folder / f"{run_dir.resolve().name}-{mark}.html" if taken else plain


def page_mark(run_dir: Path) -> str:
    """Tells the folders of two runs apart without naming them."""
    return hashlib.sha256(str(run_dir.resolve()).encode(errors="surrogateescape")).hexdigest()[:8]


def collect(run_dir: Path) -> Row:
    """Everything that the template shows."""
    validation: Row = {"base": "", "candidate": "", "kind": "vae", "verdict": "inconclusive", "next": ""}
    validation |= read_json(run_dir / "validation.json", {})
    stages = [stage_rows(name, result) for name, result in (validation.get("stages") or {}).items()]
    component = read_json(run_dir / "component.json", {})
    strategy: Row = validation.get("strategy") or {}
    candidates = [CANDIDATE | c for c in strategy.get("candidates") or []]
    readings = [READING | r for r in read_lines(run_dir / "readings.jsonl")]
    metrics = read_lines(run_dir / "metrics.jsonl")
    resting = {c["name"] for c in candidates if not c["raced"]}  # controls that were not trained
    trained = [row for row in metrics if row["strategy"] not in resting]
    names = dict.fromkeys([c["name"] for c in candidates] + [row["strategy"] for row in metrics])
    colours = {name: index for index, name in enumerate(names)}
    plan = _plan_of(run_dir)
    ledger = read_lines(run_dir / "ledger.jsonl")
    race = read_json(run_dir / "strategy.json", {})
    provenance = read_json(run_dir / "provenance.json", {})
    return {
        **_decided(run_dir, validation, component.get("rows") or [], race or strategy, plan),
        "data": DATA | described if (described := (provenance.get("data") or {}).get("description")) else {},
        "run": run_dir.resolve().name,
        "mark": page_mark(run_dir),
        "validation": validation,
        "why": why(validation["verdict"], stages),
        "open_gates": open_gates(validation["verdict"], stages),
        "stages": stages,
        "not_run": [name for name in STAGES if name not in {s["name"] for s in stages}],
        "component": [compared(MEASURED | row) for row in component.get("rows") or []],
        "layers": measured_layers(validation.get("layers") or {}),
        "channel_charts": channel_charts(component.get("channels") or {}, validation["kind"])
        + channel_heat(component.get("channels") or {})
        + [c for curve in component.get("curves") or [] for c in measured_curve(curve)]
        + similarity_maps(component.get("similarity") or {}, component.get("prompts") or []),
        **component_readings([r for r in readings if r["stage"] == "component"]),
        "plan": plan,
        "figures": figures(run_dir),
        "recommended": strategy.get("recommended"),
        "chosen_word": chosen_word(strategy),
        "race_answer": race_answer(strategy),
        "in_doubt": in_doubt(strategy),
        "candidates": with_forecast_bars(candidates, race or strategy),
        "prompt_gains": prompt_gains(strategy),
        "curves": race_chart(candidates, race, colours)
        + distance_chart(candidates, colours)
        + [
            c for stage in STAGES for c in loss_curves(stage, trained, colours) + loss_by_sigma(stage, trained, colours)
        ],
        "drift_charts": drift_charts([r for r in readings if r["stage"] != "component"]),
        "alarms": [r for r in readings if r["alarm"] and r["stage"] != "component"],
        "ledger": ledger[:LEDGER_SHOWN],
        "ledger_count": len(ledger),
        "cost": cost_rows(stages, candidates),
        "raw": [(name, text) for name in RAW if (text := read_text(run_dir / name))],
        "policy": (validation.get("policy") or {}).get("name", "default"),
        "provenance": list(flattened(provenance)),
        "config": read_text(run_dir / "config.yaml"),
    }


def _plan_of(run_dir: Path) -> Row | None:
    """Groups of layers and notes; None where the run has no plan."""
    plan: Row | None = read_json(run_dir / "plan.json", None)
    return plan and {"groups": [GROUP | g for g in plan.get("groups") or []], "notes": plan.get("notes") or []}


def _decided(run_dir: Path, validation: Row, component: list[Row], race: Row, plan: Row | None) -> Row:
    """The first screen, and what was gained and lost; of a run of an earlier version the decision is made here."""
    known = {**validation, "stages": validation.get("stages") or {}}
    if "decision" not in known:
        tolerance = (race.get("target") or {}).get("tolerance")
        known["decision"] = decide_swap(known, component=component, plan=plan, tolerance=tolerance)
    decision, pairs = known["decision"], side_by_side(run_dir)
    return {
        "first": first_screen(known, component, pairs),
        "pairs": pairs,
        "sides": SIDES,
        "changes": change_rows(decision),
        **evaluated_samples(validation.get("evaluation") or {}),
        "same": [METRIC_TITLES.get(name, MEASURES[name].metric) for name in decision["same"]],
    }
