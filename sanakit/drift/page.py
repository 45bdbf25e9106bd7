"""The page of one comparison, from the samples of both sides: moments, evidence, and the rows that differ most."""

from pathlib import Path
from typing import Any

from sanakit.drift.about import about_side
from sanakit.drift.compare import Comparison
from sanakit.drift.evidence import evidence
from sanakit.drift.sample import Sample
from sanakit.drift.shown import Shown, shown_rows
from sanakit.reporting.drift import write_drift_report

SIDES = ("reference", "current")


def write_page(
    comparison: Comparison,
    reference: dict[str, Sample],
    current: dict[str, Sample],
    out: Path,
    *,
    sources: tuple[Path | None, Path | None] = (None, None),
    labels: tuple[str, str] = SIDES,
) -> Path:
    """Write one HTML file about a comparison of samples by kind; returns `out`.

    sources: the files of the two sides, where they have any: the page shows the images and captions that they carry.
    labels: what the page calls the two sides.
    """
    sides = dict(zip(SIDES, (reference, current), strict=True))
    kinds = [kind for kind in reference if kind in current]
    moments = {kind: {side: stated_moments(samples[kind]) for side, samples in sides.items()} for kind in kinds}
    moments = {kind: {side: m for side, m in by_side.items() if m} for kind, by_side in moments.items()}
    shown = {kind: evidence(reference[kind], current[kind]) for kind in kinds}
    carried: dict[str, dict[str, dict[int, Shown]]] = {kind: {} for kind in kinds}
    for kind, parts in shown.items():
        for side, source in zip(SIDES, sources, strict=True):
            rows = [row for row, _ in parts["farthest"].get(side, [])]
            carried[kind][side] = shown_rows(source, kind, rows) if source else {}
    about = {side: about_side(source, sides[side]) for side, source in zip(SIDES, sources, strict=True)}
    return write_drift_report(comparison.as_dict(), moments, shown, carried, *labels, out, about)


def stated_moments(sample: Sample) -> dict[str, Any]:
    """Mean and standard deviation of every channel; empty where the sample has no finite value."""
    if not sample.moments:
        return {}
    return {"mean": sample.moments.mean.tolist(), "std": sample.moments.std.tolist()}
