"""The HTML report of a run folder: verdict first, then what it stands on."""

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sanakit.errors import SanakitError
from sanakit.reporting.charts import bar_chart, line_chart, margin_bar

LEDGER_SHOWN = 50


def write_report(run_dir: Path, out: Path) -> Path:
    """Write one self-contained file. Raises SK0109 when the folder is no run; other missing files leave sections out."""
    if not (run_dir / "validation.json").is_file():
        raise SanakitError("SK0109", f"{run_dir} holds no validation.json")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    html = environment.get_template("template.html.j2").render(collect(run_dir))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(out)
    return out


def number(value: Any) -> str:
    """Four significant digits, no exponent for everyday sizes; a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def collect(run_dir: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    validation = _json(run_dir / "validation.json", {})
    component = _json(run_dir / "component.json", {"rows": [], "channels": {}})
    metrics, readings = _lines(run_dir / "metrics.jsonl"), _lines(run_dir / "readings.jsonl")
    figures = [f | {"data": data} for f in _json(run_dir / "figures.json", []) if (data := _embed(run_dir, f["file"]))]
    gates = [
        gate | {"stage": stage, "bar": margin_bar(gate["value"], gate["ci_low"], gate["ci_high"], gate["threshold"])}
        for stage, result in validation["stages"].items()
        for gate in result["gates"]
    ]
    return {
        "run": run_dir.name,
        "validation": validation,
        "why": _why(gates),
        "gates": gates,
        "component": component,
        "channel_charts": _channel_charts(component.get("channels") or {}),
        "component_readings": [r for r in readings if r["stage"] == "component"],
        "plan": _json(run_dir / "plan.json", None),
        "figures": figures,
        "curves": _curves(metrics),
        "sigma_charts": _sigma_chart(metrics),
        "drift_charts": _drift_charts([r for r in readings if r["stage"] != "component"]),
        "alarms": [r for r in readings if r.get("alarm")],
        "ledger": (ledger := _lines(run_dir / "ledger.jsonl"))[:LEDGER_SHOWN],
        "ledger_count": len(ledger),
        "provenance": list(_flatten(_json(run_dir / "provenance.json", {}))),
        "config": _text(run_dir / "config.yaml"),
    }


def _why(gates: list[dict[str, Any]]) -> str:
    for verdict, text in (("fail", "failed"), ("inconclusive", "could not be decided")):
        names = [f"{g['gate']} ({g['code']})" for g in gates if g["verdict"] == verdict]
        if names:
            return f"{len(names)} of {len(gates)} gates {text}: {', '.join(names)}."
    return f"All {len(gates)} gates passed."


def _channel_charts(channels: dict[str, Any]) -> list[Any]:
    charts = []
    for moment, title in (
        ("mean", "mean"),
        ("std", "standard deviation"),
        ("skewness", "skewness"),
        ("kurtosis", "excess kurtosis"),
    ):
        series = [(side, channels[side][moment]) for side in ("base", "candidate") if moment in channels.get(side, {})]
        if series:
            charts.append(
                {
                    "title": f"Latent {title} per channel",
                    "svg": bar_chart(series, title=f"latent {title} per channel", y_label=title),
                    "columns": [name for name, _ in series],
                    "rows": _table(series),
                }
            )
    return charts


def _table(series: list[tuple[str, list[float]]]) -> list[list[Any]]:
    count = max(len(values) for _, values in series)
    return [[i, *(values[i] if i < len(values) else None for _, values in series)] for i in range(count)]


def _curves(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    charts = []
    for stage in ("smoke", "full"):
        series: dict[str, list[tuple[float, float]]] = {}
        for row in metrics:
            if row["stage"] == stage and row["split"] == "held_out":
                series.setdefault(row["strategy"], []).append((row["step"], row["loss"]))
        if series:
            title = f"Held-out velocity loss, stage {stage}"
            charts.append(
                {
                    "title": title,
                    "svg": line_chart(list(series.items()), title=title, x_label="step", y_label="loss"),
                    "rows": [[name, step, loss] for name, points in series.items() for step, loss in points],
                }
            )
    return charts


def _sigma_chart(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last: dict[str, dict[str, Any]] = {}
    for row in metrics:
        if row["stage"] == "smoke" and row["split"] == "held_out":
            last[row["strategy"]] = row
    series = [
        (name, [(float(s), v) for s, v in row["by_sigma"].items()]) for name, row in last.items() if row.get("by_sigma")
    ]
    if not series:
        return []
    title = "Held-out loss by sigma at the end of the budget"
    return [
        {
            "title": title,
            "svg": line_chart(series, title=title, x_label="sigma (1 = noise)", y_label="loss"),
            "rows": [[name, x, y] for name, points in series for x, y in points],
        }
    ]


def _drift_charts(readings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_name: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in readings:
        label = row["where"] if row["name"] == "clean-estimate-spread" else row["name"]
        by_name.setdefault(row["title"] or row["name"], {}).setdefault(label, []).append((row["step"], row["value"]))
    return [
        {
            "title": title,
            "svg": line_chart(list(series.items()), title=title, x_label="step", y_label="value"),
            "rows": [[name, step, value] for name, points in series.items() for step, value in points],
        }
        for title, series in by_name.items()
    ]


def _embed(run_dir: Path, name: str) -> str | None:
    """A picture as a data URI; only files inside the run folder."""
    path = (run_dir / name).resolve()
    if not path.is_relative_to(run_dir.resolve()) or path.suffix not in (".png", ".webp") or not path.is_file():
        return None
    return f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _flatten(value: Any, prefix: str = ""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _json(path: Path, default: Any) -> Any:
    return json.loads(_text(path)) if path.is_file() else default


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _text(path).splitlines() if line.strip()]
