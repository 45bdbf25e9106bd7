"""What the terminal shows: live progress on standard error, one table and one line at the end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


@contextmanager
def progress_display() -> Iterator[Callable[[str, int, int], None]]:
    """A callback (label, done, total); one bar a label. On something that is no terminal, one line a label."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def advance(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
                if not console.is_terminal:
                    console.print(f"{label} ({total})", highlight=False)
            bars.update(tasks[label], completed=done, total=total)
            if done >= total:
                tasks.pop(label)

        yield advance


def print_validation(validation: dict[str, Any], run_dir: Path, report: Path) -> None:
    console = Console()
    table = Table(title=f"{validation['base']} with {validation['candidate']}", title_justify="left")
    for column in ("gate", "metric", "value", "threshold", "verdict", "hint"):
        table.add_column(column, justify="right" if column in ("value", "threshold") else "left")
    for stage in validation["stages"].values():
        for gate in stage["gates"]:
            span = "" if gate["ci_low"] is None else f" [{gate['ci_low']:.3g}, {gate['ci_high']:.3g}]"
            colour = COLOURS[gate["verdict"]]
            hint = f"{gate['code']}: {gate['hint']}" if gate["hint"] else ""
            table.add_row(
                gate["gate"],
                gate["metric"],
                f"{gate['value']:.4g}{_plain(span)}",
                f"{gate['threshold']:.4g}",
                f"[{colour}]{gate['verdict']}[/]",
                hint,
            )
    console.print(table)
    candidates = validation["strategy"]["candidates"]
    if candidates:
        race = Table(title="strategies", title_justify="left")
        for column in ("strategy", "start loss", "held-out loss", "error, base = 1", "steps to base quality (90%)"):
            race.add_column(column, justify="left" if column == "strategy" else "right")
        for row in candidates:
            name = row["name"] + (" (recommended)" if row["name"] == validation["strategy"]["recommended"] else "")
            race.add_row(
                name,
                f"{row['initial_loss']:.3f}",
                f"{row['held_out_loss']:.3f}",
                f"{row['relative_error']:.3f}",
                _steps(row),
            )
        console.print(race)
    seconds = sum(stage["seconds"] for stage in validation["stages"].values())
    colour = COLOURS[validation["verdict"]]
    console.print(
        f"[bold {colour}]{validation['verdict']}[/] in {seconds:.0f} s  run {run_dir}  report {report}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"next: {validation['next']}", highlight=False, markup=False, soft_wrap=True)


def print_drift(found: dict[str, Any]) -> None:
    """Alarms first, then by p-value."""
    table = Table(title_justify="left")
    for column in ("statistic", "value", "p, corrected", "where", "alarm"):
        table.add_column(column, justify="right" if column in ("value", "p, corrected") else "left")
    rows = found["readings"]
    for row in sorted(rows, key=lambda r: (not r["alarm"], 1.0 if r["p_value"] is None else r["p_value"])):
        p = "" if row["p_value"] is None else f"{row['p_value']:.3g}"
        value = "" if row["value"] is None else f"{row['value']:.4g}"
        alarm = "[red]alarm[/]" if row["alarm"] else ""
        table.add_row(_plain(row["title"] or row["name"]), value, p, _plain(row["where"]), alarm)
    console = Console()
    console.print(table)
    colour = COLOURS[{"drift": "fail", "no-drift": "pass"}.get(found["verdict"], "inconclusive")]
    console.print(f"[bold {colour}]{found['verdict']}[/]", highlight=False)


def _steps(row: dict[str, Any]) -> str:
    def number(key: str) -> str:
        return f"{row[key]:,.0f}" if row.get(key) is not None else "not in sight"

    if row.get("predicted_steps_low") is None:
        return number("predicted_steps")
    return f"{number('predicted_steps')} ({number('predicted_steps_low')} to {number('predicted_steps_high')})"


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
