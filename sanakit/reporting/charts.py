"""Inline SVG charts of a few kilobytes. Colours come from CSS classes, so light, dark and print share one drawing.

The plot area spans the data exactly (no padding): an extreme point lies on its edge, which the tests rely on.
Values that are None or not finite are left out; a chart with nothing left is an empty string.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

from markupsafe import Markup

WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 74, 16, 14, 46
COLOURS = 8  # classes s0 to s7 of the template
LOG_FROM = 20.0  # max / min of a positive axis from which it becomes logarithmic

Scale = Callable[[float], float]
Points = Sequence[tuple[float, float]]
Series = tuple[str, Points]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    faint: Sequence[Series] = (),
    marks: Points = (),
    colours: Mapping[str, int] | None = None,
    log_y: bool | None = None,
    log_x: bool = False,
    limit: float | None = None,
    bands: Sequence[Series] = (),
) -> Markup:
    """Lines with dots. `faint` lies thin behind them in the colour of its name, `marks` are ringed (alarms), `limit` is
    a level to reach, `bands` are filled outlines in the colour of their name (forecasts).

    `colours` keeps a name's colour the same over several charts; `log_y=None` decides by the range; `log_x` counts from
    1 (x is positive).
    """
    lines, behind = _finite_series(series), _finite_series(faint)
    filled = [(name, [p for p in points if is_number(p[0]) and is_number(p[1])]) for name, points in bands]
    if not lines:
        return Markup("")
    colours = colours or {name: index for index, (name, _) in enumerate(series)}
    xs, ys = ([p[axis] for _, points in (*lines, *behind, *filled) for p in points] for axis in (0, 1))
    if is_number(limit):
        ys.append(limit)
    if log_y is None:
        log_y = min(ys) > 0 and max(ys) / min(ys) >= LOG_FROM
    x_of = scale(min(xs), max(xs), LEFT, WIDTH - RIGHT, log=log_x)
    y_of = scale(min(ys), max(ys), HEIGHT - BOTTOM, TOP, log=log_y)
    x_ticks = log_ticks(min(xs), max(xs)) if log_x else ticks(min(xs), max(xs))
    y_ticks = log_ticks(min(ys), max(ys)) if log_y else ticks(min(ys), max(ys))
    body = [
        _axes(
            x_of, y_of, x_ticks, y_ticks, x_label + (" (log)" if log_x else ""), y_label + (" (log)" if log_y else "")
        )
    ]
    for name, points in filled:
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        body.append(Markup('<polygon class="band s{}" points="{}"/>').format(colours[name] % COLOURS, path))
    if is_number(limit):
        rule = Markup('<line class="goal" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>')
        body.append(rule.format(LEFT, WIDTH - RIGHT, y_of(limit)))
    for kind, group in (("faint", behind), ("line", lines)):
        for name, line in group:
            path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line)
            body.append(Markup('<polyline class="{} s{}" points="{}"/>').format(kind, colours[name] % COLOURS, path))
    for name, line in lines:
        dot = Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="2.8"/>')
        body += [dot.format(colours[name] % COLOURS, x_of(x), y_of(y)) for x, y in line]
    ring = Markup('<circle class="ring" cx="{:.1f}" cy="{:.1f}" r="7"/>')
    body += [ring.format(x_of(x), y_of(y)) for x, y in marks if is_number(x) and is_number(y)]
    return _svg(body, f"{title}: {', '.join(name for name, _ in lines)}")


def bar_chart(
    series: Sequence[tuple[str, Sequence[float | None]]], *, title: str, y_label: str, x_label: str = "channel"
) -> Markup:
    """Grouped bars, one group an index (a channel); values that are not finite leave a gap."""
    values = [v for _, row in series for v in row if is_number(v)]
    if not values:
        return Markup("")
    low, high, count = min(0.0, *values), max(0.0, *values), max(len(row) for _, row in series)
    slot = (WIDTH - RIGHT - LEFT) / count
    width = slot * 0.8 / len(series)
    y_of = scale(low, high, HEIGHT - BOTTOM, TOP)

    def x_of(index: float) -> float:
        return LEFT + (index + 0.5) * slot

    channels = [t for t in ticks(0, count - 1) if t == int(t)]
    body = [_axes(x_of, y_of, channels, ticks(low, high), x_label, y_label)]
    bar = Markup('<rect class="bar s{}" x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}"/>')
    for index, (_, row) in enumerate(series):
        for channel, value in enumerate(row):
            if is_number(value):
                top, bottom = sorted((y_of(value), y_of(0)))
                left = x_of(channel) + (index - len(series) / 2) * width
                body.append(bar.format(index % COLOURS, left, top, width, max(bottom - top, 0.5)))
    body.append(
        Markup('<line class="axis" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>').format(LEFT, WIDTH - RIGHT, y_of(0))
    )
    return _svg(body, f"{title}: {', '.join(name for name, _ in series)}")


def heat_map(
    values: Sequence[Sequence[float | None]], *, rows: Sequence[str], columns: Sequence[str], title: str
) -> Markup:
    """Cells filled by size within their row, one colour above zero and another below;
    names of columns where they fit."""
    if not any(v for row in values for v in row if is_number(v)):
        return Markup("")
    names = [_short(name, 22) for name in rows]
    left = 16 + 10 * max(len(name) for name in names)  # room for the larger letters of phones and paper
    width, height = (WIDTH - left - 6) / max(1, len(columns)), 26
    total = 30 + height * len(rows)
    body = []
    for r, (name, row) in enumerate(zip(names, values, strict=True)):
        y = 22 + r * height
        largest = max((abs(v) for v in row if is_number(v)), default=0.0) or 1.0
        body.append(Markup('<text class="end" x="{}" y="{}">{}</text>').format(left - 8, y + 17, name))
        for c, value in enumerate(row):
            if is_number(value):
                cell = Markup(
                    '<rect class="cell {}" x="{:.1f}" y="{}" width="{:.1f}" height="{}" fill-opacity="{:.2f}"/>'
                )
                sign, size = ("above" if value > 0 else "below"), abs(value) / largest
                body.append(cell.format(sign, left + c * width, y, max(width - 1, 0.8), height - 2, size))
    every = max(1, -(-len(columns) * 34 // int(WIDTH - left)))
    label = Markup('<text class="middle" x="{:.1f}" y="14">{}</text>')
    body += [label.format(left + (c + 0.5) * width, name) for c, name in enumerate(columns) if c % every == 0]
    drawing = '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    return Markup(drawing).format(WIDTH, total, f"{title}: {', '.join(rows)}", Markup("").join(body))


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def signed_map(rows: Mapping[str, Sequence[float | None]], *, title: str, x_label: str = "channel") -> Markup:
    """One line a name, one cell an index: blue below zero, orange above, full colour at the largest magnitude."""
    values = [v for row in rows.values() for v in row if is_number(v)]
    if not values:
        return Markup("")
    left, count, top = 112, max(len(row) for row in rows.values()), max(abs(v) for v in values) or 1.0
    slot, tall = (WIDTH - RIGHT - left) / count, (HEIGHT - TOP - BOTTOM) / len(rows)
    cell = Markup(
        '<rect class="bar s{}" x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}" fill-opacity="{:.3f}">'
        "<title>{}, {} {}: {:+.3g}</title></rect>"
    )
    body = []
    for line, (name, row) in enumerate(rows.items()):
        y = TOP + line * tall
        body.append(Markup('<text class="end" x="{}" y="{:.1f}">{}</text>').format(left - 8, y + tall / 2 + 4, name))
        for index, value in enumerate(row):
            if is_number(value):
                size = (left + index * slot, y, max(slot - 1, 0.4), tall - 1)
                body.append(cell.format(int(value > 0), *size, abs(value) / top, name, x_label, index, value))
    for tick in ticks(0, count - 1):
        if tick == int(tick):
            x = left + (tick + 0.5) * slot
            body.append(
                Markup('<text class="middle" x="{:.1f}" y="{}">{:.6g}</text>').format(x, HEIGHT - BOTTOM + 19, tick)
            )
    body.append(Markup('<text class="end" x="{}" y="{}">{}</text>').format(WIDTH - RIGHT, HEIGHT - 6, x_label))
    return _svg(body, f"{title}: largest magnitude {top:.3g}")


def scatter(series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> Markup:
    """Dots without lines, half transparent so that overlapping clouds are both seen."""
    groups = _finite_series(series)
    if not groups:
        return Markup("")
    xs, ys = ([p[axis] for _, points in groups for p in points] for axis in (0, 1))
    x_of = scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_of = scale(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    body = [_axes(x_of, y_of, ticks(min(xs), max(xs)), ticks(min(ys), max(ys)), x_label, y_label)]
    dot = Markup('<circle class="dot s{}" cx="{:.0f}" cy="{:.0f}" r="2.4" fill-opacity=".55"/>')
    names = [name for name, _ in series]
    for name, points in groups:
        body += [dot.format(names.index(name) % COLOURS, x_of(x), y_of(y)) for x, y in points]
    return _svg(body, f"{title}: {', '.join(name for name, _ in groups)}")


def margin_bar(value: float | None, low: float | None, high: float | None, threshold: float | None) -> Markup:
    """A gate at a glance: interval, value and threshold on one axis."""
    points = [v for v in (value, low, high, threshold) if is_number(v)]
    if len(points) < 2:
        return Markup("")
    pad = 0.12 * (max(points) - min(points)) or 1.0
    return _strip(min(points) - pad, max(points) + pad, value, low, high, threshold)


def forecast_bar(value: float | None, low: float | None, high: float | None, limit: float) -> Markup:
    """Steps with their interval on an axis from 0 to `limit` that all strategies share; an open interval runs on."""
    if not is_number(value) and not is_number(low):
        return Markup("")
    return _strip(0, limit, value, low, high if is_number(high) else limit if is_number(low) else None, None)


def legend(names: Sequence[str], colours: Mapping[str, int] | None = None, *, bars: bool = False) -> Markup:
    """A list that wraps under its chart: text inside an SVG cannot, and would shrink on a phone."""
    line = '<line class="line s{0}" x1="0" x2="24" y1="5" y2="5"/><circle class="dot s{0}" cx="12" cy="5" r="3.5"/>'
    drawing = '<rect class="bar s{0}" x="7" y="0" width="10" height="10"/>' if bars else line
    item = Markup('<li><svg class="swatch" viewBox="0 0 24 10" aria-hidden="true">' + drawing + "</svg>{1}</li>")
    colours = colours or {name: index for index, name in enumerate(names)}
    items = Markup("").join(item.format(colours[name] % COLOURS, name) for name in names)
    return Markup('<ul class="legend">{}</ul>').format(items)


def scale(low: float, high: float, start: float, end: float, *, log: bool = False) -> Scale:
    """Map [low, high] on [start, end], linearly or in the logarithm; a single value lands in the middle."""
    if high == low:
        return lambda value: (start + end) / 2
    if log:
        linear = scale(math.log(low), math.log(high), start, end)
        return lambda value: linear(math.log(value))
    return lambda value: start + (value - low) / (high - low) * (end - start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next((m for m in (1, 2, 5) if m * power >= raw), 10)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten inside [low, high], powers alone when those are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 4 else (1,)
    every = math.ceil(len(decades) / 8)
    return [v for d in decades if d % every == 0 for m in factors if low <= (v := float(f"{m}e{d}")) <= high]


def is_number(value: Any) -> TypeGuard[float]:
    """Finite, and within what a float holds: an integer of JSON may be beyond."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _finite_series(series: Sequence[Series]) -> list[Series]:
    kept = [(name, sorted((x, y) for x, y in points if is_number(x) and is_number(y))) for name, points in series]
    return [(name, points) for name, points in kept if points]


def _strip(
    start: float, end: float, value: float | None, low: float | None, high: float | None, threshold: float | None
) -> Markup:
    x_of = scale(start, end, 5, 115)
    parts = [Markup('<line class="axis" x1="0" x2="120" y1="9" y2="9"/>')]
    if is_number(low) and is_number(high):
        parts.append(Markup('<line class="span" x1="{:.1f}" x2="{:.1f}" y1="9" y2="9"/>').format(x_of(low), x_of(high)))
    if is_number(threshold):
        parts.append(Markup('<line class="limit" x1="{0:.1f}" x2="{0:.1f}" y1="1" y2="17"/>').format(x_of(threshold)))
    if is_number(value):
        parts.append(Markup('<circle class="value" cx="{:.1f}" cy="9" r="4"/>').format(x_of(value)))
    return Markup('<svg class="margin" viewBox="0 0 120 18" aria-hidden="true">{}</svg>').format(Markup("").join(parts))


def _axes(
    x_of: Scale, y_of: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str
) -> Markup:
    horizontal = Markup(
        '<line class="rule" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/><text class="end" x="{3}" '
        'y="{4:.1f}">{5:.4g}</text>'
    )
    parts = [horizontal.format(LEFT, WIDTH - RIGHT, y_of(t), LEFT - 8, y_of(t) + 4, t) for t in y_ticks]
    vertical = Markup('<text class="middle" x="{:.1f}" y="{}">{:.6g}</text>')
    parts += [vertical.format(x_of(t), HEIGHT - BOTTOM + 19, t) for t in x_ticks]
    parts.append(Markup('<text class="end" x="{}" y="{}">{}</text>').format(WIDTH - RIGHT, HEIGHT - 6, x_label))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        Markup('<text class="middle" transform="translate(13 {}) rotate(-90)">{}</text>').format(middle, y_label)
    )
    return Markup("").join(parts)


def _svg(body: Sequence[Markup], label: str) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(body)
    )
