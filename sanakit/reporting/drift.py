"""The HTML page of one drift comparison: verdict, readings, and what moved. No script.

Effects by channel as a heat map, moments, spectra, the two leading components, and the rows that differ most.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sanakit.reporting import conclusions
from sanakit.reporting.charts import bar_chart, legend, line_chart, scatter, signed_map
from sanakit.reporting.ci import CAUSE, likely_causes
from sanakit.reporting.drift_summary import SMALL, sides_text, summary
from sanakit.reporting.page import environment, write_html

Moments = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]  # kind, side, "mean" or "std", value a channel


class Shown(Protocol):
    """A row of a side: its label, and its image as a data URI; each may be empty."""

    @property
    def label(self) -> str: ...
    @property
    def uri(self) -> str: ...


Carried = Mapping[str, Mapping[str, Mapping[int, Shown]]]  # kind, side, row
SIDES = ("reference", "current")
MOST_BARS = 64  # channels; more of them are dots
NOTHING = (
    "neither images nor captions; `sanakit encode` keeps them in what it writes for drift, "
    "stage component in its snapshot"
)


def write_drift_report(
    comparison: Mapping[str, Any],
    moments: Moments,
    evidence: Mapping[str, Mapping[str, Any]],
    carried: Carried,
    reference: str,
    current: str,
    out: Path,
    about: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """comparison: what `sanakit drift --json` prints. evidence: of `drift.evidence`, by kind. carried: images and
    labels of the rows that differ most, where a side has them. about: {kind, count, encoder, data} of each side."""

    def order(r: Any) -> tuple[bool, float]:
        return (not r["alarm"], 1 if r["p_value"] is None else r["p_value"])

    readings = sorted((r for r in comparison["readings"] if r["name"] != CAUSE), key=order)
    alarming = {r["where"].partition(":")[0] for r in readings if r["alarm"]}
    kinds = sorted(moments, key=lambda kind: (kind not in alarming, kind != "latents"))
    page = environment().get_template("drift.html.j2")
    html = page.render(
        verdict=comparison["verdict"],
        why=why(comparison["verdict"], readings),
        causes=likely_causes(comparison["readings"]),
        **summary(comparison["verdict"], evidence, carried),
        sides=sides_text(about or {}),
        readings=readings,
        panels=[panel for kind in kinds for panel in _panels(kind, moments[kind], evidence.get(kind, {}))],
        farthest=[
            _side(kind, side, rows, carried.get(kind, {}).get(side, {}))
            for kind in kinds
            for side, rows in evidence.get(kind, {}).get("farthest", {}).items()
        ],
        reference=reference,
        current=current,
    )
    return write_html(html, out)


def why(verdict: str, readings: Sequence[Mapping[str, Any]]) -> str:
    """One sentence; readings: alarms first."""
    moved = sum(bool(r["alarm"]) for r in readings)
    if verdict == "drift":
        place = str(readings[0]["where"]).strip(": ")
        where = f" The strongest evidence is in: {place}." if place else ""
        return f"{moved} of {len(readings)} statistics moved more than chance allows.{where}"
    if verdict == "no-drift":
        return f"None of {len(readings)} statistics moved more than chance allows."
    few = [f"{r['title']} ({r['where']})" for r in readings if r["name"] == "samples"]
    return f"Inconclusive: {'; '.join(few)}." if few else "Too few samples to say; the readings below say how many."


def _side(kind: str, side: str, rows: Sequence[tuple[int, float]], carried: Mapping[int, Shown]) -> dict[str, Any]:
    """The rows of a side that differ most, and what is said where it carries no images."""
    shown = [
        {
            "row": row,
            "gain": gain,
            "label": shown_row.label if shown_row else "",
            "image": shown_row.uri if shown_row else "",
        }
        for row, gain in rows
        for shown_row in [carried.get(row)]
    ]
    note, with_image = "", any(row["image"] for row in shown)
    if rows and not with_image:
        captions = "captions alone" if kind == "embeddings" else "names alone"
        note = f"This side carries {captions if any(row['label'] for row in shown) else NOTHING}."
    return {"title": f"{kind}, {side}", "rows": shown, "note": note, "with_image": with_image}


def _panels(kind: str, moments: Mapping[str, Any], evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Title, conclusion, drawing, legend and note of every chart that has something to show."""
    lines, bars = legend(SIDES), legend(SIDES, bars=True)
    panels = []
    if evidence.get("effects"):
        rows = evidence["effects"]
        effects = {name: row for name, row in rows.items() if name != "norms"}
        note = (
            "Shift of every feature of an image or prompt, in sd: orange is up, blue down. In a browser, hover a "
            "cell for its value."
        )
        title = f"{kind}: what moved"
        says = conclusions.features_moved(effects, SMALL)
        panel = {"title": title, "svg": signed_map(effects, title=title), "legend": "", "note": note}
        panels.append(panel | {"says": says})
    if set(SIDES) <= moments.keys():
        for moment, label in (("mean", "mean"), ("std", "standard deviation")):
            title, sides = f"{kind}: {label} by channel", [(side, moments[side][moment]) for side in SIDES]
            if len(sides[0][1]) <= MOST_BARS:
                svg = bar_chart(sides, title=title, y_label=label)
                says = conclusions.channels_apart(sides)
                panels.append({"title": title, "svg": svg, "legend": bars, "note": "", "says": says})
                continue
            dots = [("channel", list(zip(*(values for _, values in sides), strict=True)))]
            svg = scatter(dots, title=title, x_label=f"reference {label}", y_label="current")
            says = conclusions.channels_apart(sides)
            panels.append({"title": title, "svg": svg, "legend": "", "note": "One dot a channel.", "says": says})
    if evidence.get("spectra"):
        title = f"{kind}: radial spectrum"
        sides = list(evidence["spectra"].items())
        svg = line_chart(sides, title=title, x_label="frequency, 1 = Nyquist", y_label="log10 power", log_y=False)
        note = (
            "Mean over channels and images of the log power of a coefficient; beyond 1 lies the corner of the spectrum."
        )
        says = conclusions.spectra_apart(evidence["spectra"])
        panels.append({"title": title, "svg": svg, "legend": lines, "note": note, "says": says})
    if evidence.get("points"):
        title = f"{kind}: the two leading components"
        svg = scatter(
            [(side, [(x, y) for x, y in rows]) for side, rows in evidence["points"].items()],
            title=title,
            x_label="first component",
            y_label="second",
        )
        note = "Principal components of the features' normal scores, one dot per image or prompt."
        says = conclusions.clouds_apart(evidence["points"])
        panels.append({"title": title, "svg": svg, "legend": bars, "note": note, "says": says})
    return [panel for panel in panels if panel["svg"]]
