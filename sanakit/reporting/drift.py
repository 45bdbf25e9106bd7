"""The HTML page of one drift comparison: verdict, readings, channel moments of both sides. No script."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sanakit.reporting.charts import bar_chart, legend
from sanakit.reporting.report import number

Moments = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]  # kind, side, "mean" or "std", value a channel
WHY = {
    "drift": "At least one statistic moved more than chance allows.",
    "no-drift": "No statistic moved more than chance allows.",
    "inconclusive": "Too few samples to say.",
}


def write_drift_report(found: Mapping[str, Any], moments: Moments, reference: str, current: str, out: Path) -> Path:
    """found: what `sanakit drift --json` prints."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = number
    sides = ("reference", "current")
    charts = [
        bar_chart([(side, by_side[side][moment]) for side in sides], title=f"{kind}: {label} by channel", y_label=label)
        for kind, by_side in moments.items()
        if set(sides) <= by_side.keys()
        for moment, label in (("mean", "mean"), ("std", "standard deviation"))
    ]
    html = environment.get_template("drift.html.j2").render(
        verdict=found["verdict"],
        why=WHY[found["verdict"]],
        readings=sorted(found["readings"], key=lambda r: (not r["alarm"], 1 if r["p_value"] is None else r["p_value"])),
        charts=charts,
        legend=legend(sides, bars=True),
        reference=reference,
        current=current,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    return out
