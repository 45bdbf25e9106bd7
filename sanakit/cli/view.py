"""Tables of the terminal that several commands share, and the words in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from sanakit.reporting.ci import CAUSE, likely_causes
from sanakit.reporting.decided import MOODS
from sanakit.reporting.strategies import steps_text

COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def print_data(dataset: Any, folder: Path, *, buckets: bool = False, as_json: bool = False) -> None:
    """The line that describes the data, and what was ignored or changed; on standard error beside a JSON document."""
    from sanakit.data.describe import describe_lines

    console = Console(stderr=as_json)
    for line in describe_lines(dataset, ledger=str(folder / "ledger.jsonl"), buckets=buckets):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_leaderboard(rows: list[dict[str, Any]], page: Path | None, warnings: Sequence[str] = ()) -> None:
    """Fits 80 columns: the run stands under its candidate, the forecast under its strategy."""
    table = Table(title="runs, best first", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in ("#", "candidate, run", "decision, wiring", "error\nover base", "PSNR", "strategy, steps"):
        table.add_column(
            column, justify="right" if column in ("#", "error\nover base", "PSNR") else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(
            str(row["rank"]),
            f"{plain(row['candidate'])}\n[dim]{plain(row['run'])}[/]",
            f"[{COLOURS[MOODS[row['answer']]]}]{row['answer']}[/]\n[{COLOURS[row['verdict']]}]{row['verdict']}[/]",
            number_text(row["error_ratio"]),
            number_text(row["psnr"]),
            f"{plain(row['strategy'])}\n{plain(steps_text(row))}" if row["strategy"] else "",
        )
    for warning in warnings:
        Console(stderr=True).print(f"careful: {warning}", highlight=False, markup=False, soft_wrap=True)
    console = Console()
    console.print(table)
    if page:
        console.print(f"page {page}", highlight=False, markup=False, soft_wrap=True)


def print_drift(comparison: dict[str, Any]) -> None:
    """Alarms first, then by p-value."""
    table = Table(title_justify="left")
    for column in ("statistic", "value", "p, corrected", "where", "alarm"):
        table.add_column(column, justify="right" if column in ("value", "p, corrected") else "left")
    rows = [row for row in comparison["readings"] if row["name"] != CAUSE and not row.get("error")]
    for row in sorted(rows, key=lambda r: (not r["alarm"], 1.0 if r["p_value"] is None else r["p_value"])):
        p = "" if row["p_value"] is None else f"{row['p_value']:.3g}"
        value = "" if row["value"] is None else f"{row['value']:.4g}"
        alarm = "[red]alarm[/]" if row["alarm"] else ""
        table.add_row(plain(row["title"] or row["name"]), value, p, plain(row["where"]), alarm)
    console = Console()
    console.print(table)
    colour = COLOURS[{"drift": "fail", "no-drift": "pass"}.get(comparison["verdict"], "inconclusive")]
    console.print(f"[bold {colour}]{comparison['verdict']}[/]", highlight=False)
    for told in likely_causes(comparison["readings"]):
        console.print(plain(told), highlight=False)
    for row in comparison["readings"]:
        if row.get("error"):
            console.print(
                f"{row['name']} could not be evaluated: {row['error']}", highlight=False, markup=False, soft_wrap=True
            )


def number_text(value: float | None, form: str = ".3g") -> str:
    return "" if value is None else f"{value:{form}}"


def plain(text: str) -> str:
    return text.replace("[", "\\[")
