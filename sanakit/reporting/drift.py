"""The HTML page of one drift comparison: verdict, readings, and what moved. No script.

Effects by channel as a heat map, moments, spectra, the two leading components, and the rows that differ most.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sanakit.reporting.charts import bar_chart, legend, line_chart, scatter, signed_map
from sanakit.reporting.page import environment, write_html

Moments = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]  # kind, side, "mean" or "std", value a channel
Pictures = Mapping[str, Mapping[str, Mapping[int, str]]]  # kind, side, row: a data URI
SIDES = ("reference", "current")


def write_drift_report(
    found: Mapping[str, Any],
    moments: Moments,
    evidence: Mapping[str, Mapping[str, Any]],
    pictures: Pictures,
    reference: str,
    current: str,
    out: Path,
) -> Path:
    """found: what `sanakit drift --json` prints. evidence: of `drift.evidence`, by kind. pictures: of the rows that
    differ most, where a side carries pictures."""
    order = lambda r: (not r["alarm"], 1 if r["p_value"] is None else r["p_value"])
    readings = sorted(found["readings"], key=order)
    html = (
        environment()
        .get_template("drift.html.j2")
        .render(
            verdict=found["verdict"],
            why=why(found["verdict"], readings),
            readings=readings,
            panels=[panel for kind in moments for panel in _panels(kind, moments[kind], evidence.get(kind, {}))],
            farthest=[
                (kind, side, rows, pictures.get(kind, {}).get(side, {}))
                for kind, parts in evidence.items()
                for side, rows in parts["farthest"].items()
            ],
            reference=reference,
            current=current,
        )
    )
    return write_html(html, out)


def why(verdict: str, readings: Sequence[Mapping[str, Any]]) -> str:
    """One sentence; readings: alarms first."""
    moved = sum(bool(r["alarm"]) for r in readings)
    if verdict == "drift":
        place = str(readings[0]["where"]).strip(": ")
        where = f", most clearly in {place}" if place else ""
        return f"{moved} of {len(readings)} readings moved more than chance allows{where}."
    if verdict == "no-drift":
        return f"None of {len(readings)} readings moved more than chance allows."
    return "Too few samples to say; the reading below says how many are needed."


def _panels(kind: str, moments: Mapping[str, Any], evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Title, drawing, legend and note of every chart that has something to show."""
    lines, bars = legend(SIDES), legend(SIDES, bars=True)
    found = []
    if evidence.get("effects"):
        rows = evidence["effects"]
        effects = {name: row for name, row in rows.items() if name != "norms"}
        note = "Shift of every feature of a picture or prompt, in sd: orange is up, blue down. In a browser, hover a cell for its value."
        title = f"{kind}: what moved"
        found.append({"title": title, "svg": signed_map(effects, title=title), "legend": "", "note": note})
    if set(SIDES) <= moments.keys():
        for moment, label in (("mean", "mean"), ("std", "standard deviation")):
            title = f"{kind}: {label} by channel"
            svg = bar_chart([(side, moments[side][moment]) for side in SIDES], title=title, y_label=label)
            found.append({"title": title, "svg": svg, "legend": bars, "note": ""})
    if evidence.get("spectra"):
        title = f"{kind}: radial spectrum"
        series = [(side, list(enumerate(row, 1))) for side, row in evidence["spectra"].items()]
        svg = line_chart(series, title=title, x_label="cycles a picture", y_label="power")
        found.append({"title": title, "svg": svg, "legend": lines, "note": ""})
    if evidence.get("points"):
        title = f"{kind}: the two leading components"
        svg = scatter(
            [(side, [(x, y) for x, y in rows]) for side, rows in evidence["points"].items()],
            title=title,
            x_label="first component",
            y_label="second",
        )
        note = "Principal components of the features' normal scores, one dot a picture or prompt."
        found.append({"title": title, "svg": svg, "legend": bars, "note": note})
    return [panel for panel in found if panel["svg"]]
