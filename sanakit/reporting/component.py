"""Stage component in the report: base beside candidate in numbers, channels, spectra and cosines of prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from sanakit.decision import MEASURES
from sanakit.reporting import conclusions
from sanakit.reporting.charts import Series, bar_chart, heat_map, is_number, legend, line_chart
from sanakit.reporting.page import panel

Row = dict[str, Any]

MEASURED = {"unit": "", "base": None, "candidate": None, "better": ""}
MOMENTS = {"mean": "mean", "std": "standard deviation", "skewness": "skewness", "kurtosis": "excess kurtosis"}
SHORT = {"mean": "mean", "std": "sd", "skewness": "skewness", "kurtosis": "kurtosis"}
NOISE = {measure.metric: measure.noise for measure in MEASURES.values() if not measure.unit}
PER_CHANNEL_FROM = 4  # readings of one name at one step from which they are a chart, not rows of a table


def compared(row: Row) -> Row:
    """Adds the relative change, and whether that is better, worse or neither; "same" where its interval holds zero."""
    base, candidate = row["base"], row["candidate"]
    if not (is_number(base) and is_number(candidate)) or not base:
        return row | {"change": None, "sense": ""}
    ends = row.get("difference_low"), row.get("difference_high")
    if is_number(ends[0]) and is_number(ends[1]) and ends[0] <= 0 <= ends[1]:
        return row | {"change": "same", "sense": ""}
    up, change = candidate > base, (candidate - base) / abs(base)
    if abs(change) <= NOISE.get(row["metric"], 0.0):
        return row | {"change": "same", "sense": ""}
    sense = "" if candidate == base or not row["better"] else "better" if up == (row["better"] == "higher") else "worse"
    text = "same" if not change else f"× {candidate / base:.3g}" if abs(change) >= 10 else f"{change:+.1%}"
    return row | {"change": text, "sense": sense}


def channel_charts(channels: Mapping[str, Any], kind: str) -> list[Row]:
    noun = "Embedding" if kind == "text_encoder" else "Latent"
    charts: list[Row] = []
    for moment, name in MOMENTS.items():
        series = [(side, moments[moment]) for side, moments in channels.items() if (moments or {}).get(moment)]
        title, sides = f"{noun} {name} per channel", [side for side, _ in series]
        count = max((len(values) for _, values in series), default=0)
        rows = [[i, *(values[i] if i < len(values) else None for _, values in series)] for i in range(count)]
        svg = bar_chart(series, title=title, y_label=name)
        says = conclusions.ranges(series)
        charts += panel(title, svg, ["channel", *sides], rows, key=legend(sides, bars=True), says=says)
    return charts


def channel_heat(channels: Mapping[str, Any]) -> list[Row]:
    """Every channel's moments at a glance, each moment as its distance from a unit Gaussian's."""
    expected = {"mean": 0.0, "std": 1.0, "skewness": 0.0, "kurtosis": 0.0}
    rows, values = [], []
    for side, moments in channels.items():
        for moment, target in expected.items():
            moment_values = (moments or {}).get(moment)
            if moment_values:
                rows.append(f"{side} {SHORT[moment]}")
                values.append([v - target if is_number(v) else None for v in moment_values])
    if not rows:
        return []
    count = max(len(row) for row in values)
    title = "Channels at a glance: distance from a unit Gaussian"
    svg = heat_map(values, rows=rows, columns=[str(i) for i in range(count)], title=title)
    table = [[i, *(row[i] if i < len(row) else None for row in values)] for i in range(count)]
    note = "The deeper, the further, each row by its own largest; two colours for above and below."
    says = conclusions.farthest_cell(rows, values)
    return panel(title, svg, ["channel", *rows], table, note=note, says=says)


def measured_curve(curve: Row) -> list[Row]:
    series: list[Series] = [(name, points) for name, points in curve["series"].items() if points]
    svg = line_chart(series, title=curve["title"], x_label=curve["x"], y_label=curve["y"])
    rows = [[name, *point] for name, points in series for point in points]
    columns, names = ["series", curve["x"], curve["y"]], [n for n, _ in series]
    says = conclusions.curve(curve["title"], series)
    return panel(curve["title"], svg, columns, rows, key=legend(names), says=says)


def similarity_maps(similarity: Mapping[str, Any], prompts: Sequence[str]) -> list[Row]:
    charts: list[Row] = []
    for side, matrix in similarity.items():
        title = f"Cosine of prompts, {side}"
        names = [str(i + 1) for i in range(len(prompts))]
        labels = [f"{i} {prompt}" for i, prompt in zip(names, prompts, strict=True)]
        svg = heat_map(matrix, rows=labels, columns=names, title=title)
        rows = [[label, *row] for label, row in zip(labels, matrix, strict=True)]
        charts += panel(title, svg, ["prompt", *names], rows, says=conclusions.cosines(matrix))
    return charts


def measured_layers(ranking: Row) -> Row:
    """Hidden layers of the encoder, best first, what could not be measured last."""
    rows = [{"note": ""} | row for row in ranking.get("layers") or []]
    best_first = sorted(rows, key=lambda row: row["error"] if is_number(row["error"]) else float("inf"))
    return ranking | {"layers": best_first} if rows else {}


def component_readings(readings: Sequence[Row]) -> Row:
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
        says = conclusions.largest_place(rows)
        charts += panel(title, svg, ["where", "value"], [[r["where"], r["value"]] for r in rows], says=says)
    return {"component_readings": table, "reading_charts": charts}
