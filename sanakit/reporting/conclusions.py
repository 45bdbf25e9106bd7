"""What to conclude from a chart, in one line, from the values that it draws."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from sanakit.reporting.charts import Series, is_number
from sanakit.reporting.page import number

Row = Mapping[str, Any]
UPPER = 0.5  # of the radii of a spectrum: above lie the high frequencies


def nearest_at_the_end(lines: Sequence[Series]) -> str:
    """Of error curves over step + 1: who ends nearest the base."""
    ends = [(points[-1][1], name, points[-1][0] - 1) for name, points in lines if points]
    if not ends:
        return ""
    error, name, step = min(ends)
    return f"{name} ends nearest the base: {number(error)} times its error after {number(step)} steps."


def lowest_at_the_end(lines: Sequence[Series], what: str) -> str:
    ends = [(points[-1][1], name) for name, points in lines if points and is_number(points[-1][1])]
    return f"{min(ends)[1]} ends with the lowest {what}, {number(min(ends)[0])}." if ends else ""


def nearest_start(starts: Mapping[str, Sequence[float]]) -> str:
    """Of feature distances by depth, before any step."""
    means = [(sum(known) / len(known), name) for name, row in starts.items() if (known := [*filter(is_number, row)])]
    return f"{min(means)[1]} starts nearest the base: {number(min(means)[0])}, mean over depths." if means else ""


def largest_loss(series: Sequence[Series]) -> str:
    points = [(y, x, name) for name, rows in series for x, y in rows if is_number(y)]
    if not points:
        return ""
    loss, sigma, name = max(points)
    return f"The loss is largest at sigma {sigma:g}: {number(loss)} ({name})."


def ranges(series: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """Smallest to largest value of every side."""
    known = [(name, [v for v in row if is_number(v)]) for name, row in series]
    parts = [f"{name} {number(min(row))} to {number(max(row))}" for name, row in known if row]
    return f"From smallest to largest: {', '.join(parts)}." if parts else ""


def farthest_cell(rows: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    cells = [
        (abs(v), name, column, v)
        for name, row in zip(rows, values, strict=True)
        for column, v in enumerate(row)
        if is_number(v)
    ]
    if not cells:
        return ""
    _, name, column, value = max(cells)
    return f"Furthest from a unit Gaussian: {name} of channel {column}, {value:+.3g}."


def curve(title: str, series: Sequence[Series]) -> str:
    """Of a spectrum the share of power at high frequencies; of any other curve its median."""
    if title == "Power spectra":
        shares = [(name, _upper_share(points)) for name, points in series]
        told = [f"{name} {share:.1%}" for name, share in shares if share is not None]
        return f"Power in the upper half of the frequencies: {', '.join(told)}." if told else ""
    told = [f"{name} {number(median(y for _, y in points))}" for name, points in series if points]
    return f"Median: {', '.join(told)}." if told else ""


def _upper_share(points: Sequence[tuple[float, float]]) -> float | None:
    last, total = max((x for x, _ in points), default=0.0), sum(y for _, y in points)
    return sum(y for x, y in points if x > UPPER * last) / total if total else None


def cosines(matrix: Sequence[Sequence[float]]) -> str:
    others = [v for i, row in enumerate(matrix) for j, v in enumerate(row) if i != j and is_number(v)]
    return f"Median of two different prompts: {number(median(others))}; at 1 they are all alike." if others else ""


def alarms(rows: Sequence[Row]) -> str:
    raised = [row for row in rows if row["alarm"]]
    if not raised:
        return f"No alarm in {len(rows)} readings."
    first = min(raised, key=lambda row: row["step"])
    where = f" at {first['where']}" if first["where"] else ""
    return f"{len(raised)} of {len(rows)} readings raised an alarm, the first at step {first['step']}{where}."


def largest_place(rows: Sequence[Row]) -> str:
    known = [row for row in rows if is_number(row["value"])]
    top = max(known, key=lambda row: abs(row["value"]), default=None)
    return f"Largest at {top['where']}: {number(top['value'])}." if top else ""
