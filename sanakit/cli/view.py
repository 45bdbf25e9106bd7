"""What the terminal shows: live progress on standard error, one table and one line at the end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sanakit.reporting.ci import CAUSE, advice, bound, in_doubt, likely_causes, margin, reading
from sanakit.reporting.strategies import level, race_answer

QUIET_BELOW = 1.0  # seconds under which a finished label is not told on something that is no terminal
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


class Throughput(ProgressColumn):
    """Items a second of a bar, from rich's own moving average."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


@contextmanager
def progress_display() -> Iterator[Callable[[str, int, int], None]]:
    """A callback (label, done, total); one bar a label with throughput and time left. On something that is no terminal,
    a line when a label begins and one with its throughput when it ends."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Throughput(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, Any] = {}
    begun: dict[str, float] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def advance(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label], begun[label] = bars.add_task(label, total=total), time.perf_counter()
                if not console.is_terminal:
                    console.print(f"{label} ({total})", highlight=False, markup=False)
            bars.update(tasks[label], completed=done, total=total)
            if done >= total:
                seconds = time.perf_counter() - begun.pop(label)
                tasks.pop(label)
                if not console.is_terminal and seconds >= QUIET_BELOW:
                    console.print(f"{label}: {total / seconds:,.1f}/s, {seconds:.0f} s", highlight=False, markup=False)

        yield advance


def print_data(dataset: Any, folder: Path, *, buckets: bool = False, as_json: bool = False) -> None:
    """The line that describes the data, and what was ignored or changed; on standard error beside a JSON document."""
    from sanakit.data.describe import describe_lines

    console = Console(stderr=as_json)
    for line in describe_lines(dataset, ledger=str(folder / "ledger.jsonl"), buckets=buckets):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_validation(validation: dict[str, Any], run_dir: Path, report: Path) -> None:
    """A table of gates a stage, the race, the verdict in one line with the cost so far, the next command."""
    console = Console()
    base = "" if validation["base"] == "none" else f" in {validation['base']}"
    console.print(f"[bold]{_plain(validation['candidate'])}[/]{_plain(base)}", highlight=False)
    for name, stage in validation["stages"].items():
        console.print(_gates(name, stage))
    if validation.get("layers"):
        console.print(_layers(validation["layers"]))
    candidates = validation["strategy"]["candidates"]
    if candidates:
        race = Table(title="strategies", title_justify="left")
        span = f"steps to base quality ({level(validation['strategy'])})"
        for column in ("strategy", "start loss", "held-out loss", "error, base = 1", span):
            race.add_column(column, justify="left" if column == "strategy" else "right")
        for row in candidates:
            name = row["name"] + (" (recommended)" if row["name"] == validation["strategy"]["recommended"] else "")
            race.add_row(
                name,
                *(_number(row[key], ".3f") for key in ("initial_loss", "held_out_loss", "relative_error")),
                _outcome(row),
            )
        console.print(race)
        for told in race_lines(validation["strategy"]):
            console.print(told, highlight=False, markup=False, soft_wrap=True)
    gates = [gate for stage in validation["stages"].values() for gate in stage["gates"]]
    not_passed = [gate["gate"] for gate in gates if gate["verdict"] == validation["verdict"] != "pass"]
    seconds = sum(stage["seconds"] for stage in validation["stages"].values())
    colour = COLOURS[validation["verdict"]]
    told = f": {', '.join(not_passed)}" if not_passed else f", {len(gates)} gates"
    console.print(f"[bold {colour}]{validation['verdict']}[/]{_plain(told)}", highlight=False, soft_wrap=True)
    cost = f"cost so far: {seconds:.0f} s  run {run_dir}  report {report}"
    console.print(cost, highlight=False, markup=False, soft_wrap=True)
    console.print(f"next: {validation['next']}", highlight=False, markup=False, soft_wrap=True)


def race_lines(strategy: dict[str, Any]) -> list[str]:
    """Below the table of strategies: who left the race and why, what it says, and where it cannot tell."""
    rows, lines = strategy["candidates"], []
    lines += [f"{row['name']} left the race: {row['diverged']}" for row in rows if row.get("diverged")]
    lines += [f"{row['name']} was dropped: {row['dropped']}" for row in rows if row.get("dropped")]
    return [*lines, *race_answer(strategy), *([told] if (told := in_doubt(strategy)) else [])]


def _layers(ranking: dict[str, Any]) -> Table:
    table = Table(title="layers of the text encoder, against the base's caption features", title_justify="left")
    for column in ("layer", "held-out error", "more than the record's own"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    ranked = sorted((r for r in ranking["layers"] if r["error"] is not None), key=lambda row: row["error"])
    for row in ranked + [r for r in ranking["layers"] if r["error"] is None]:
        said = [
            word for word, layer in (("used", ranking["used"]), ("better", ranking["best"])) if layer == row["layer"]
        ]
        said = said if ranking["best"] != ranking["used"] else said[:1]
        name = f"{row['layer']} ({', '.join(said)})" if said else str(row["layer"])
        more = f"{row['more']:+.3f} +- {row['noise']:.3f}" if row["more"] is not None else row["note"]
        table.add_row(name, _number(row["error"]), more)
    return table


def _gates(name: str, stage: dict[str, Any]) -> Table:
    """Narrow enough for 80 columns: the metric stands under its gate, the interval under its value,
    the hint under both."""
    table = Table(title=f"stage {name}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), expand=False)
    table.add_column("gate and metric", overflow="fold", ratio=1)
    for column in ("value", "threshold", "margin", "verdict"):
        table.add_column(column, justify="left" if column == "verdict" else "right", no_wrap=True)
    for gate in stage["gates"]:
        colour, room = COLOURS[gate["verdict"]], margin(gate)
        told = f"[bold]{_plain(gate['gate'].removeprefix(f'{name}/'))}[/]\n[dim]{_plain(gate['metric'])}[/]"
        if gate["verdict"] != "pass":
            told += f"\n[{colour}]{_plain(gate['code'])}: {_plain(advice(gate))}[/]"
        table.add_row(
            told,
            _plain(reading(gate).replace(" [", "\n[")),
            bound(gate).replace("at least", ">=").replace("at most", "<=").replace("above", ">"),
            "" if room is None else f"{room:+.0%}" if abs(room) < 10 else "far" if room > 0 else "far off",
            f"[{colour}]{gate['verdict']}[/]",
        )
    return table


def print_leaderboard(rows: list[dict[str, Any]], page: Path | None) -> None:
    table = Table(title="runs, best first", title_justify="left")
    for column in (
        "#",
        "candidate",
        "run",
        "verdict",
        "error over base",
        "PSNR",
        "strategy",
        "steps to base quality",
    ):
        right = column in ("#", "error over base", "PSNR", "steps to base quality")
        table.add_column(column, justify="right" if right else "left")
    for row in rows:
        table.add_row(
            str(row["rank"]),
            _plain(row["candidate"]),
            _plain(row["run"]),
            f"[{COLOURS[row['verdict']]}]{row['verdict']}[/]",
            _number(row["error_ratio"]),
            _number(row["psnr"]),
            _plain(row["strategy"] or ""),
            _steps(row) if row["strategy"] else "",
        )
    console = Console()
    console.print(table)
    if page:
        console.print(f"page {page}", highlight=False, markup=False, soft_wrap=True)


def print_plan(plan: dict[str, Any]) -> None:
    """Parameter groups in rows, strategies in columns; then what else the swap touches."""
    strategies = plan.get("strategies") or {}
    table = Table(title="plan", title_justify="left")
    for column in ("group", "parameters", "changed shapes", *strategies):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for row in plan["groups"]:
        shapes = [f"{s['name']} {_shape(s['before'])} -> {_shape(s['after'])}" for s in row.get("shapes") or []]
        table.add_row(
            row["group"],
            f"{row['parameters']:,}",
            "\n".join(shapes),
            *(of[row["group"]] for of in strategies.values()),
        )
    console = Console()
    console.print(table)
    for note in plan["notes"]:
        console.print(f"- {note}", highlight=False, markup=False, soft_wrap=True)


def _shape(shape: list[int] | None) -> str:
    return "new" if shape is None else "x".join(map(str, shape))


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
        table.add_row(_plain(row["title"] or row["name"]), value, p, _plain(row["where"]), alarm)
    console = Console()
    console.print(table)
    colour = COLOURS[{"drift": "fail", "no-drift": "pass"}.get(comparison["verdict"], "inconclusive")]
    console.print(f"[bold {colour}]{comparison['verdict']}[/]", highlight=False)
    for told in likely_causes(comparison["readings"]):
        console.print(_plain(told), highlight=False)
    for row in comparison["readings"]:
        if row.get("error"):
            console.print(
                f"{row['name']} could not be evaluated: {row['error']}", highlight=False, markup=False, soft_wrap=True
            )


def _number(value: float | None, form: str = ".3g") -> str:
    return "" if value is None else f"{value:{form}}"


def _outcome(row: dict[str, Any]) -> str:
    """What a race says of a strategy; runs of earlier versions raced every one that they list."""
    if not row.get("raced", True):
        return "not trained (--controls)"
    return "diverged" if row.get("diverged") else "dropped" if row.get("dropped") else _steps(row)


def _steps(row: dict[str, Any]) -> str:
    steps, low, high = (row.get(f"predicted_steps{end}") for end in ("", "_low", "_high"))
    known = "not in sight" if steps is None else f"{steps:,.0f}"
    return known if low is None else f"{known} ({low:,.0f} to {'open' if high is None else f'{high:,.0f}'})"


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
