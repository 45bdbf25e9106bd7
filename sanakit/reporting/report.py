"""The HTML report of a run folder: verdict first, then what it stands on."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sanakit.errors import SanakitError
from sanakit.reporting.charts import (
    Series,
    bar_chart,
    forecast_bar,
    heat_map,
    is_number,
    legend,
    line_chart,
    margin_bar,
)
from sanakit.reporting.ci import advice, bound

Row = dict[str, Any]

LEDGER_SHOWN = 50
RAW = ("validation.json", "component.json", "strategy.json", "plan.json")
FORECAST_SHOWN = 4.0  # budgets: a forecast further out is drawn to here
PER_CHANNEL_FROM = 4  # readings of one name at one step from which they are a chart, not rows of a table
STAGES = ("component", "smoke", "full")
MOMENTS = {"mean": "mean", "std": "standard deviation", "skewness": "skewness", "kurtosis": "excess kurtosis"}
IMAGES = {".png": "image/png", ".webp": "image/webp"}

# What a row says when a key is left out; the template itself is strict.
GATE = dict.fromkeys(("value", "ci_low", "ci_high", "threshold")) | {
    "code": "",
    "metric": "",
    "hint": "",
    "verdict": "inconclusive",
    "at_least": None,
    "samples": None,
    "samples_needed": None,
}
FORECAST = ("predicted_steps", "predicted_steps_low", "predicted_steps_high")
OUTCOME = ("initial_loss", "held_out_loss", "relative_error", "learning_rate", "trained_parameters")
CANDIDATE = dict.fromkeys((*FORECAST, *OUTCOME)) | {"title": ""}
GROUP = {"action": "", "parameters": None, "parameters_before": None, "note": ""}
MEASURED = {"unit": "", "base": None, "candidate": None, "better": ""}
READING = dict.fromkeys(("value", "ci_low", "ci_high", "p_value", "threshold")) | {
    "stage": "full",
    "title": "",
    "where": "",
    "step": 0,
    "alarm": False,
}


def write_report(run_dir: Path, out: Path) -> Path:
    """Write one self-contained file. Raises SK0109 when the folder is no run; other missing files leave sections out."""
    if not (run_dir / "validation.json").is_file():
        raise SanakitError("SK0109", f"{run_dir} holds no validation.json")
    return write_html(environment().get_template("template.html.j2").render(collect(run_dir)), out)


def environment() -> Environment:
    """Templates of this folder: escaped, strict about names."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "duration": duration}
    return made


def write_html(html: str, out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    temporary.write_text(html, encoding="utf-8", errors="replace")
    temporary.replace(out)
    return out


def number(value: Any) -> str:
    """Four significant digits, no exponent for everyday sizes; a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:,.0f}" if is_number(value) and abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def collect(run_dir: Path) -> Row:
    """Everything that the template shows."""
    validation: Row = {"base": "", "candidate": "", "kind": "vae", "verdict": "inconclusive", "next": ""}
    validation |= _json(run_dir / "validation.json", {})
    stages = [_stage(name, result) for name, result in (validation.get("stages") or {}).items()]
    component = _json(run_dir / "component.json", {})
    strategy: Row = validation.get("strategy") or {}
    candidates = [CANDIDATE | c for c in strategy.get("candidates") or []]
    readings = [READING | r for r in _lines(run_dir / "readings.jsonl")]
    metrics = _lines(run_dir / "metrics.jsonl")
    # one colour a strategy in all charts
    names = dict.fromkeys([c["name"] for c in candidates] + [row["strategy"] for row in metrics])
    colours = {name: index for index, name in enumerate(names)}
    plan = _json(run_dir / "plan.json", None)
    ledger = _lines(run_dir / "ledger.jsonl")
    return {
        "run": run_dir.resolve().name,
        "validation": validation,
        "why": _why(validation["verdict"], stages),
        "stages": stages,
        "not_run": [name for name in STAGES if name not in {s["name"] for s in stages}],
        "component": [_compared(MEASURED | row) for row in component.get("rows") or []],
        "channel_charts": _channel_charts(component.get("channels") or {}, validation["kind"])
        + _heat(component.get("channels") or {})
        + [c for curve in component.get("curves") or [] for c in _measured_curve(curve)]
        + _similarity(component.get("similarity") or {}, component.get("prompts") or []),
        **_component_readings([r for r in readings if r["stage"] == "component"]),
        "plan": plan and {"groups": [GROUP | g for g in plan.get("groups") or []], "notes": plan.get("notes") or []},
        "figures": _figures(run_dir),
        "recommended": strategy.get("recommended"),
        "candidates": _forecasts(candidates),
        "curves": _race(candidates, _json(run_dir / "strategy.json", {}), colours)
        + [c for stage in STAGES for c in _curves(stage, metrics, colours) + _by_sigma(stage, metrics, colours)],
        "drift_charts": _drift_charts([r for r in readings if r["stage"] != "component"]),
        "alarms": [r for r in readings if r["alarm"] and r["stage"] != "component"],
        "ledger": ledger[:LEDGER_SHOWN],
        "ledger_count": len(ledger),
        "cost": _cost(stages, candidates),
        "raw": [(name, text) for name in RAW if (text := _text(run_dir / name))],
        "policy": (validation.get("policy") or {}).get("name", "default"),
        "provenance": list(_flatten(_json(run_dir / "provenance.json", {}))),
        "config": _text(run_dir / "config.yaml"),
    }


def _stage(name: str, result: Row) -> Row:
    gates = [GATE | gate for gate in result.get("gates") or []]
    for gate in gates:
        gate["advice"] = "" if gate["verdict"] == "pass" else advice(gate)
        gate["bound"] = bound(gate) if is_number(gate["threshold"]) else "–"
        gate["bar"] = margin_bar(gate["value"], gate["ci_low"], gate["ci_high"], gate["threshold"])
    return {"name": name, "verdict": result["verdict"], "gates": gates, "seconds": result.get("seconds")}


def _why(verdict: str, stages: Sequence[Row]) -> str:
    """One sentence: what failed, else what could not be decided, else that all is well."""
    gates = [gate for stage in stages for gate in stage["gates"]]
    for kind, text in (("fail", "failed"), ("inconclusive", "could not be decided")):
        names = [f"{g['gate']} ({g['code']})" if g["code"] else g["gate"] for g in gates if g["verdict"] == kind]
        if names:
            return f"{len(names)} of {len(gates)} gates {text}: {', '.join(names)}."
    if not gates:
        return "No gate has been measured."
    return (
        f"Every gate passed: {len(gates)} of {len(gates)}."
        if verdict == "pass"
        else (f"Every measured gate passed ({len(gates)}), but the verdict needs more than these.")
    )


def _compared(row: Row) -> Row:
    """Adds the relative change, and whether that is better, worse or neither."""
    base, candidate = row["base"], row["candidate"]
    if not (is_number(base) and is_number(candidate)) or not base:
        return row | {"change": None, "sense": ""}
    up, change = candidate > base, (candidate - base) / abs(base)
    sense = "" if candidate == base or not row["better"] else "better" if up == (row["better"] == "higher") else "worse"
    text = "same" if not change else f"× {candidate / base:.3g}" if abs(change) >= 10 else f"{change:+.1%}"
    return row | {"change": text, "sense": sense}


def _chart(
    title: str, svg: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, key: str = "", note: str = ""
) -> list[Row]:
    """A panel, or nothing when no value was left to draw."""
    return [{"title": title, "svg": svg, "legend": key, "note": note, "columns": columns, "rows": rows}] if svg else []


def _channel_charts(channels: Mapping[str, Any], kind: str) -> list[Row]:
    noun = "Embedding" if kind == "text_encoder" else "Latent"
    charts: list[Row] = []
    for moment, name in MOMENTS.items():
        series = [(side, moments[moment]) for side, moments in channels.items() if (moments or {}).get(moment)]
        title, sides = f"{noun} {name} per channel", [side for side, _ in series]
        count = max((len(values) for _, values in series), default=0)
        rows = [[i, *(values[i] if i < len(values) else None for _, values in series)] for i in range(count)]
        svg = bar_chart(series, title=title, y_label=name)
        charts += _chart(title, svg, ["channel", *sides], rows, key=legend(sides, bars=True))
    return charts


def _heat(channels: Mapping[str, Any]) -> list[Row]:
    """Every channel's moments at a glance, each moment as its distance from a unit Gaussian's."""
    expected = {"mean": 0.0, "std": 1.0, "skewness": 0.0, "kurtosis": 0.0}
    rows, values = [], []
    for side, moments in channels.items():
        for moment, target in expected.items():
            found = (moments or {}).get(moment)
            if found:
                rows.append(f"{side}, {MOMENTS[moment]}")
                values.append([v - target if is_number(v) else None for v in found])
    if not rows:
        return []
    count = max(len(row) for row in values)
    title = "Channels at a glance: distance from a unit Gaussian"
    svg = heat_map(values, rows=rows, columns=[str(i) for i in range(count)], title=title)
    table = [[i, *(row[i] if i < len(row) else None for row in values)] for i in range(count)]
    note = "The deeper, the further, each row by its own largest; two colours for above and below."
    return _chart(title, svg, ["channel", *rows], table, note=note)


def _measured_curve(curve: Row) -> list[Row]:
    series: list[Series] = [(name, points) for name, points in curve["series"].items() if points]
    svg = line_chart(series, title=curve["title"], x_label=curve["x"], y_label=curve["y"])
    rows = [[name, *point] for name, points in series for point in points]
    return _chart(curve["title"], svg, ["series", curve["x"], curve["y"]], rows, key=legend([n for n, _ in series]))


def _similarity(similarity: Mapping[str, Any], prompts: Sequence[str]) -> list[Row]:
    charts: list[Row] = []
    for side, matrix in similarity.items():
        title = f"Cosine of prompts, {side}"
        names = [str(i + 1) for i in range(len(prompts))]
        labels = [f"{i} {prompt}" for i, prompt in zip(names, prompts, strict=True)]
        svg = heat_map(matrix, rows=labels, columns=names, title=title)
        rows = [[label, *row] for label, row in zip(labels, matrix, strict=True)]
        charts += _chart(title, svg, ["prompt", *names], rows)
    return charts


def _race(candidates: Sequence[Row], race: Row, colours: Mapping[str, int]) -> list[Row]:
    """Every strategy's error over the base's by step, the base's level, and where each is forecast to arrive there."""
    goal, budget = (1.0 if race.get("target") else None), race.get("budget_steps") or 0
    lines: list[Series] = []
    bands: list[Series] = []
    rows: list[list[Any]] = []
    for c in candidates:
        points = [(step + 1, e) for step, e in zip(c.get("steps") or [], c.get("relative_errors") or [], strict=False)]
        if not points:
            continue
        lines.append((c["name"], points))
        rows += [[c["name"], "measured", step - 1, e] for step, e in points]
        low, high = c["predicted_steps_low"], c["predicted_steps_high"]
        last = points[-1]
        if is_number(goal) and is_number(low) and low + 1 > last[0] and budget:
            edge = FORECAST_SHOWN * budget
            ends = [min(low + 1, edge), min(high + 1 if is_number(high) else edge, edge)]
            bands.append((c["name"], [last, *((x, goal) for x in ends)]))
            rows += [[c["name"], label, x, goal] for label, x in (("forecast, early", low), ("forecast, late", high))]
    title = "The race: error over the base's, with forecast bands"
    options: Row = {"x_label": "step + 1", "y_label": "error over the base's", "colours": colours}
    svg = line_chart(lines, title=title, log_x=True, limit=goal, bands=bands, **options)
    note = "Dashed: the base. Shaded: between the early and the late end of the forecast (90%), cut at four budgets."
    return _chart(
        title,
        svg,
        ["strategy", "kind", "step", "error over the base's"],
        rows,
        key=legend([n for n, _ in lines], colours),
        note=note,
    )


def _cost(stages: Sequence[Row], candidates: Sequence[Row]) -> list[list[Any]]:
    """What was spent, and what each strategy's forecast would cost on the same machine."""
    rows: list[list[Any]] = [[f"stage {s['name']}", duration(s["seconds"]), ""] for s in stages]
    for c in candidates:
        rate, steps = c.get("seconds_per_step"), c["predicted_steps"]
        if is_number(rate) and rate and is_number(steps):
            once = (c.get("seconds_once") or 0.0) if steps else 0.0
            source = f"{number(steps)} steps of {rate * 1000:.0f} ms" + (f", {duration(once)} before" if once else "")
            rows.append([f"{c['name']}, forecast", duration(once + rate * steps), source])
    return rows


def _component_readings(readings: Sequence[Row]) -> Row:
    """Names read in many places (channels, layers) are charts, the others rows of one table."""
    by_name: dict[str, list[Row]] = {}
    for row in readings:
        by_name.setdefault(row["name"], []).append(row)
    charts: list[Row] = []
    table: list[Row] = []
    for name, rows in by_name.items():
        if len(rows) < PER_CHANNEL_FROM:
            table += rows
            continue
        title = rows[0]["title"] or name
        svg = bar_chart([(name, [r["value"] for r in rows])], title=title, y_label="value", x_label="place")
        charts += _chart(title, svg, ["where", "value"], [[r["where"], r["value"]] for r in rows])
    return {"component_readings": table, "reading_charts": charts}


def _forecasts(candidates: list[Row]) -> list[Row]:
    limit = max((c[n] for c in candidates for n in FORECAST if is_number(c[n])), default=0.0) or 1.0
    return [
        c | {"bar": forecast_bar(c["predicted_steps"], c["predicted_steps_low"], c["predicted_steps_high"], limit)}
        for c in candidates
    ]


def _curves(stage: str, metrics: Sequence[Row], colours: Mapping[str, int]) -> list[Row]:
    split: dict[str, dict[str, list[tuple[float, float]]]] = {"held_out": {}, "train": {}}
    for row in metrics:
        if row["stage"] == stage and row["split"] in split:
            split[row["split"]].setdefault(row["strategy"], []).append((row["step"], row["loss"]))
    held_out, train = list(split["held_out"].items()), list(split["train"].items())
    title = f"Held-out velocity loss, stage {stage}"
    svg = line_chart(held_out, title=title, x_label="step", y_label="loss", faint=train, colours=colours)
    rows = [
        [name, kind, *point]
        for kind, lines in (("held-out", held_out), ("train", train))
        for name, points in lines
        for point in points
    ]
    note = "Thin lines: training loss." if train else ""
    return _chart(
        title,
        svg,
        ["strategy", "split", "step", "loss"],
        rows,
        key=legend([n for n, _ in held_out], colours),
        note=note,
    )


def _by_sigma(stage: str, metrics: Sequence[Row], colours: Mapping[str, int]) -> list[Row]:
    """Each strategy's last held-out loss, split by sigma."""
    last: dict[str, Row] = {}
    for row in metrics:
        if row["stage"] == stage and row["split"] == "held_out" and row.get("by_sigma"):
            last[row["strategy"]] = max(row, last.get(row["strategy"], row), key=lambda r: r["step"])
    series = [(name, [(float(s), loss) for s, loss in row["by_sigma"].items()]) for name, row in last.items()]
    title = f"Loss by sigma at the last step, stage {stage}"
    svg = line_chart(series, title=title, x_label="sigma (1 = noise)", y_label="loss", colours=colours)
    rows = [[name, last[name]["step"], *point] for name, points in series for point in points]
    return _chart(title, svg, ["strategy", "step", "sigma", "loss"], rows, key=legend(list(last), colours))


def _drift_charts(readings: Sequence[Row]) -> list[Row]:
    """One chart a statistic. It has a line a place where one step has several places; a place that only names each
    step's worst channel is no line of its own."""
    by_name: dict[str, list[Row]] = {}
    for row in readings:
        by_name.setdefault(row["name"], []).append(row)
    charts: list[Row] = []
    for name, rows in by_name.items():
        several = len({(r["stage"], r["step"]) for r in rows}) < len(rows)
        stages = len({r["stage"] for r in rows}) > 1
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            label = (row["where"] or name) if several else name
            lines.setdefault(f"{row['stage']}: {label}" if stages else label, []).append((row["step"], row["value"]))
        series: list[Series] = list(lines.items())
        title, marks = rows[0]["title"] or name, [(r["step"], r["value"]) for r in rows if r["alarm"]]
        svg = line_chart(series, title=title, x_label="step", y_label="value", marks=marks)
        table = [
            [r["stage"], r["step"], r["where"], r["value"], r["p_value"], "alarm" if r["alarm"] else ""] for r in rows
        ]
        columns = ["stage", "step", "where", "value", "p", "alarm"]
        charts += _chart(title, svg, columns, table, key=legend(list(lines)), note="Ringed: alarm." if marks else "")
    return charts


def _figures(run_dir: Path) -> list[Row]:
    rows = [
        {"section": "samples", "title": "", "caption": "", "file": ""} | f for f in _json(run_dir / "figures.json", [])
    ]
    return [row | {"data": data} for row in rows if (data := _embed(run_dir, row["file"]))]


def _embed(run_dir: Path, name: str) -> str | None:
    """A picture as a data URI; only files inside the run folder (links are followed first) and only pictures."""
    kind = IMAGES.get(Path(name).suffix.lower())
    if kind is None or "\0" in name:
        return None
    path = (run_dir / name).resolve()
    if not path.is_relative_to(run_dir.resolve()) or not path.is_file():
        return None
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _json(path: Path, default: Any) -> Any:
    return json.loads(_text(path)) if path.is_file() else default


def _lines(path: Path) -> list[Row]:
    """Rows of a JSONL file. A killed run may leave half a last line; anything else that is no JSON raises."""
    *complete, last = _text(path).split("\n")  # not splitlines: it also splits at U+2028 inside strings
    rows = [json.loads(line) for line in complete if line.strip()]
    try:
        return [*rows, json.loads(last)] if last.strip() else rows
    except json.JSONDecodeError:
        return rows
