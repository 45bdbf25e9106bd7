"""A result as a notebook shows it: its verdict, one sentence, and a table. No script, no outside resource."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

COLOURS = {
    **dict.fromkeys(("pass", "no-drift"), "#1a7f37"),
    **dict.fromkeys(("fail", "drift"), "#cf222e"),
    "inconclusive": "#9a6700",
}
MOST_ROWS = 40


def fragment(title: str, verdict: str, sentences: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """HTML of one result. verdict: empty where nothing was decided. rows: of one table, all with the same keys; at most
    MOST_ROWS are shown."""
    colour = COLOURS.get(verdict, "inherit")
    parts = [f"<b>{escape(title)}</b>"]
    if verdict:
        parts[0] += f': <b style="color:{colour}">{escape(verdict)}</b>'
    parts += [f"<div>{escape(sentence)}</div>" for sentence in sentences]
    if rows:
        head = "".join(f'<th style="text-align:left">{escape(str(key))}</th>' for key in rows[0])
        body = "".join(f"<tr>{''.join(map(_cell, row.values()))}</tr>" for row in rows[:MOST_ROWS])
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    if len(rows) > MOST_ROWS:
        parts.append(f"<div>{len(rows) - MOST_ROWS} more rows</div>")
    return f"<div>{''.join(parts)}</div>"


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    text = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
    return f'<td style="text-align:left">{escape(text)}</td>'
