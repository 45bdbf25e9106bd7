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


def channels_apart(sides: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Of a moment of every channel on two sides: where they differ most."""
    first, second = (values for _, values in sides)
    pairs = [(abs(b - a), i, a, b) for i, (a, b) in enumerate(zip(first, second, strict=False))]
    known = [pair for pair in pairs if is_number(pair[0])]
    if not known:
        return ""
    _, channel, before, after = max(known)
    return f"Channel {channel} differs most: {number(before)} to {number(after)}."


def features_moved(effects: Mapping[str, Sequence[float]], least: float) -> str:
    """Of shifts in sd: how many cells are as large as `least`, and the feature with most of them."""
    moved = {name: sum(is_number(v) and abs(v) >= least for v in row) for name, row in effects.items()}
    cells, total = sum(len(row) for row in effects.values()), sum(moved.values())
    most = max(moved, key=lambda name: moved[name], default="")
    where = f", most of them in: {most.rstrip('.')}" if total else ""
    return f"{total} of {cells} cells moved by {least:g} sd or more{where}." if cells else ""


def spectra_apart(spectra: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Of two spectra, (frequency, log10 power): where the current one has gained or lost most."""
    rings = dict(spectra.get("reference") or [])
    pairs = [(y - rings[x], x) for x, y in spectra.get("current") or [] if x in rings]
    if not pairs:
        return ""
    change, frequency = max(pairs, key=lambda pair: abs(pair[0]))
    return f"The power changes most at frequency {number(frequency)}: x{number(10**change)}."


def clouds_apart(points: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Of points in two dimensions on two sides: how far the centres are apart, in spreads of the reference."""
    reference, current = (list(points.get(side) or []) for side in ("reference", "current"))
    if len(reference) < 2 or not current:
        return ""
    first, second = ([sum(p[i] for p in side) / len(side) for i in (0, 1)] for side in (reference, current))
    spread = (sum((p[0] - first[0]) ** 2 + (p[1] - first[1]) ** 2 for p in reference) / len(reference)) ** 0.5
    apart = ((second[0] - first[0]) ** 2 + (second[1] - first[1]) ** 2) ** 0.5
    return (
        f"The centres of the two sides are {number(apart / spread)} spreads of the reference apart." if spread else ""
    )
