"""Drift over steps in the report: one chart a statistic, alarms ringed."""

from collections.abc import Sequence
from typing import Any

from sanakit.reporting import conclusions
from sanakit.reporting.charts import Series, legend, line_chart
from sanakit.reporting.page import panel

Row = dict[str, Any]

READING = dict.fromkeys(("value", "ci_low", "ci_high", "p_value", "threshold")) | {
    "stage": "full",
    "title": "",
    "where": "",
    "step": 0,
    "alarm": False,
}


def drift_charts(readings: Sequence[Row]) -> list[Row]:
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
        note, says = "Ringed: alarm." if marks else "", conclusions.alarms(rows)
        charts += panel(title, svg, columns, table, key=legend(list(lines)), note=note, says=says)
    return charts
