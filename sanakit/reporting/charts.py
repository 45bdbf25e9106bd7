"""Inline SVG charts of a few kilobytes: colours by CSS class, so light, dark and print need no second drawing."""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 130, 12, 34

Series = tuple[str, Sequence[tuple[float, float]]]


def line_chart(series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> Markup:
    """Lines with a legend at their right; points that are not finite are left out. Empty when nothing is left."""
    lines = [(name, [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]) for name, points in series]
    lines = [(name, points) for name, points in lines if points]
    if not lines:
        return Markup("")
    xs, ys = ([p[axis] for _, points in lines for p in points] for axis in (0, 1))
    x_of, y_of = scale(min(xs), max(xs), LEFT, WIDTH - RIGHT), scale(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    body = [_axes(x_of, y_of, (min(xs), max(xs)), (min(ys), max(ys)), x_label, y_label)]
    for index, (name, points) in enumerate(lines):
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in sorted(points))
        body.append(Markup('<polyline class="line s{}" points="{}"/>').format(index % 6, path))
        body += [
            Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="2.5"/>').format(index % 6, x_of(x), y_of(y))
            for x, y in points
        ]
        y = TOP + 14 + 18 * index
        body.append(
            Markup(
                '<line class="line s{0}" x1="{1}" x2="{2}" y1="{3}" y2="{3}"/><text x="{4}" y="{5}">{6}</text>'
            ).format(index % 6, WIDTH - RIGHT + 12, WIDTH - RIGHT + 30, y - 4, WIDTH - RIGHT + 36, y, name)
        )
    return _svg(body, title)


def bar_chart(series: Sequence[tuple[str, Sequence[float]]], *, title: str, y_label: str) -> Markup:
    """Grouped bars, one group an index (a channel); values that are not finite leave a gap."""
    values = [v for _, row in series for v in row if math.isfinite(v)]
    if not values:
        return Markup("")
    low, high, count = min(0.0, *values), max(0.0, *values), max(len(row) for _, row in series)
    x_of, y_of = scale(0, count, LEFT, WIDTH - RIGHT), scale(low, high, HEIGHT - BOTTOM, TOP)
    body = [_axes(x_of, y_of, (0, count), (low, high), "channel", y_label)]
    group = (x_of(1) - x_of(0)) * 0.84
    for index, (name, row) in enumerate(series):
        for i, value in enumerate(row):
            if math.isfinite(value):
                top, bottom = sorted((y_of(value), y_of(0)))
                body.append(
                    Markup('<rect class="bar s{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                        index, x_of(i) + index * group / len(series), top, group / len(series), max(bottom - top, 0.5)
                    )
                )
        body.append(
            Markup('<rect class="bar s{}" x="{}" y="{}" width="12" height="12"/><text x="{}" y="{}">{}</text>').format(
                index, WIDTH - RIGHT + 14, TOP + 4 + 18 * index, WIDTH - RIGHT + 36, TOP + 14 + 18 * index, name
            )
        )
    return _svg(body, title)


def margin_bar(value: float, low: float | None, high: float | None, threshold: float) -> Markup:
    """A gate at a glance: interval, value and threshold on one axis."""
    points = [v for v in (value, low, high, threshold) if v is not None and math.isfinite(v)]
    if len(points) < 2:
        return Markup("")
    pad = 0.12 * (max(points) - min(points)) or 1.0
    x_of = scale(min(points) - pad, max(points) + pad, 0, 120)
    parts = [Markup('<line class="axis" x1="0" x2="120" y1="9" y2="9"/>')]
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        parts.append(Markup('<line class="span" x1="{:.1f}" x2="{:.1f}" y1="9" y2="9"/>').format(x_of(low), x_of(high)))
    if math.isfinite(threshold):
        parts.append(
            Markup('<line class="threshold" x1="{0:.1f}" x2="{0:.1f}" y1="1" y2="17"/>').format(x_of(threshold))
        )
    if math.isfinite(value):
        parts.append(Markup('<circle class="dot s0" cx="{:.1f}" cy="9" r="4"/>').format(x_of(value)))
    return Markup('<svg class="margin" viewBox="0 0 120 18" aria-hidden="true">{}</svg>').format(Markup("").join(parts))


def scale(low: float, high: float, start: float, end: float):
    """Linear map of [low, high] on [start, end]; a single value lands in the middle."""
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _axes(x_of, y_of, x_range, y_range, x_label: str, y_label: str) -> Markup:
    parts = []
    for fraction in (0, 0.25, 0.5, 0.75, 1):
        y_value = y_range[0] + fraction * (y_range[1] - y_range[0])
        x_value = x_range[0] + fraction * (x_range[1] - x_range[0])
        parts.append(
            Markup(
                '<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/><text class="end" x="{3}" y="{4:.1f}">{5:.3g}</text>'
            ).format(LEFT, WIDTH - RIGHT, y_of(y_value), LEFT - 6, y_of(y_value) + 4, y_value)
        )
        parts.append(
            Markup('<text class="middle" x="{:.1f}" y="{}">{:.4g}</text>').format(
                x_of(x_value), HEIGHT - BOTTOM + 16, x_value
            )
        )
    parts.append(
        Markup('<text class="middle" x="{}" y="{}">{}</text>').format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, x_label)
    )
    parts.append(
        Markup('<text class="middle" transform="translate(11 {}) rotate(-90)">{}</text>').format(
            (TOP + HEIGHT - BOTTOM) / 2, y_label
        )
    )
    return Markup("").join(parts)


def _svg(body: Sequence[Markup], title: str) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, escape(title), Markup("").join(body)
    )
