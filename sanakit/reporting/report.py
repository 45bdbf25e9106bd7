"""The HTML report of a run folder: verdict first, then what it stands on."""

from pathlib import Path
from typing import Any

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
from sanakit.reporting.folder import figures, flattened, read_as_run, read_json, read_lines, read_text
from sanakit.reporting.gates import open_gates, stage_rows, why
from sanakit.reporting.page import environment, write_html
from sanakit.reporting.steps import READING, drift_charts
from sanakit.reporting.strategies import (
    CANDIDATE,
    cost_rows,
    distance_chart,
    loss_by_sigma,
    loss_curves,
    prompt_gains,
    race_answer,
    race_chart,
    with_forecast_bars,
)

Row = dict[str, Any]

LEDGER_SHOWN = 50
RAW = ("validation.json", "component.json", "strategy.json", "plan.json")
STAGES = ("component", "smoke", "full")
GROUP = {"action": "", "parameters": None, "parameters_before": None, "note": ""}


def write_report(run_dir: Path, out: Path) -> Path:
    """Write one self-contained file. Raises SK0109 when the folder is no run;
    other missing files leave sections out."""
    with read_as_run(run_dir):
        html = environment().get_template("template.html.j2").render(collect(run_dir))
    return write_html(html, out)


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
    # one colour a strategy in all charts
    names = dict.fromkeys([c["name"] for c in candidates] + [row["strategy"] for row in metrics])
    colours = {name: index for index, name in enumerate(names)}
    plan = read_json(run_dir / "plan.json", None)
    ledger = read_lines(run_dir / "ledger.jsonl")
    return {
        "run": run_dir.resolve().name,
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
        "plan": plan and {"groups": [GROUP | g for g in plan.get("groups") or []], "notes": plan.get("notes") or []},
        "figures": figures(run_dir),
        "recommended": strategy.get("recommended"),
        "race_answer": race_answer(strategy),
        "in_doubt": in_doubt(strategy),
        "candidates": with_forecast_bars(candidates),
        "prompt_gains": prompt_gains(strategy),
        "curves": race_chart(candidates, read_json(run_dir / "strategy.json", {}), colours)
        + distance_chart(candidates, colours)
        + [
            c for stage in STAGES for c in loss_curves(stage, metrics, colours) + loss_by_sigma(stage, metrics, colours)
        ],
        "drift_charts": drift_charts([r for r in readings if r["stage"] != "component"]),
        "alarms": [r for r in readings if r["alarm"] and r["stage"] != "component"],
        "ledger": ledger[:LEDGER_SHOWN],
        "ledger_count": len(ledger),
        "cost": cost_rows(stages, candidates),
        "raw": [(name, text) for name in RAW if (text := read_text(run_dir / name))],
        "policy": (validation.get("policy") or {}).get("name", "default"),
        "provenance": list(flattened(read_json(run_dir / "provenance.json", {}))),
        "config": read_text(run_dir / "config.yaml"),
    }
