"""What every page shares: templates that escape, numbers and durations as text, one file written whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sanakit.files import output
from sanakit.reporting.charts import is_number

Row = dict[str, Any]


def environment() -> Environment:
    """Templates of this folder: escaped, strict about names."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "duration": duration}
    return made


def write_html(html: str, out: Path) -> Path:
    """Raises SK0104 or SK0903."""
    with output(out) as temporary:
        temporary.write_text(html, encoding="utf-8", errors="replace")
    return out


def number(value: Any) -> str:
    """Four significant digits, no exponent for everyday sizes; a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:,.0f}" if is_number(value) and abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def duration(seconds: float | None) -> str:
    if not is_number(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def panel(
    title: str,
    svg: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    key: str = "",
    note: str = "",
    says: str = "",
) -> list[Row]:
    """A panel, or nothing when no value was left to draw. says: what to conclude, in one line."""
    shown = {"title": title, "svg": svg, "legend": key, "note": note, "says": says, "columns": columns, "rows": rows}
    return [shown] if svg else []
