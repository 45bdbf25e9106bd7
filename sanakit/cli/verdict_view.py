"""What a run shows on the terminal: the decision in six lines, then tables that fit 80 columns and read at 40."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from sanakit.cli.view import COLOURS, number_text, plain
from sanakit.reporting.charts import is_number
from sanakit.reporting.ci import advice, bound, in_doubt, margin, reading
from sanakit.reporting.decided import MOODS, WORDS, headline, lines_of
from sanakit.reporting.samples import evaluated_on, evaluated_rows
from sanakit.reporting.strategies import chosen_word, level, outcome, race_answer

NARROW = 60  # columns below which rows are stacked, as a table would break every word
LABEL = 8


def print_validation(
    validation: dict[str, Any], run_dir: Path, report: Path, *, verbose: bool = False, quiet: bool = False
) -> None:
    """Six lines of the decision; then what was measured. verbose: gates that passed too. quiet: six lines alone."""
    console = Console()
    if "decision" in validation:
        print_decision(console, validation)
    if quiet:
        return
    narrow = console.width < NARROW
    for name, stage in validation["stages"].items():
        _print_stage(console, name, stage, narrow=narrow, verbose=verbose)
    if validation.get("layers"):
        console.print(_layers(validation["layers"]))
    _print_race(console, validation["strategy"], narrow=narrow)
    _print_scores(console, validation.get("evaluation") or {})
    seconds = sum(stage["seconds"] for stage in validation["stages"].values())
    colour = COLOURS[validation["verdict"]]
    console.print(
        f"\nwiring: [bold {colour}]{validation['verdict']}[/]{plain(_not_passed(validation))}", highlight=False
    )
    for line in (f"cost so far: {seconds:.0f} s", f"run {run_dir}", f"report {report}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if "decision" not in validation:
        console.print(f"next: {validation['next']}", highlight=False, markup=False, soft_wrap=True)


def print_decision(console: Console, validation: dict[str, Any]) -> None:
    """The answer first; a text that is longer than the terminal goes on under its own beginning."""
    answer = validation["decision"]["answer"]
    word, colour = WORDS[answer], COLOURS[MOODS[answer]]
    rest = headline(validation).removeprefix(word)
    console.print(f"[bold {colour}]{word}[/]{plain(rest)}", highlight=False)
    table = Table.grid(padding=(0, 1))
    table.add_column(width=LABEL - 1, style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    *told, (_, command) = lines_of(validation)
    for label, text in told:
        table.add_row(label, plain(text))
    console.print(table, highlight=False)
    console.print(f"next    {command}", highlight=False, markup=False, soft_wrap=True)


def _not_passed(validation: dict[str, Any]) -> str:
    """What the verdict hangs on, or how many gates passed."""
    gates = [gate for stage in validation["stages"].values() for gate in stage["gates"]]
    names = [gate["gate"] for gate in gates if gate["verdict"] == validation["verdict"] != "pass"]
    return f": {', '.join(names)}" if names else f", {len(gates)} gates"


def _print_stage(console: Console, name: str, stage: dict[str, Any], *, narrow: bool, verbose: bool) -> None:
    """Gates that did not pass, and how many did; all of them when verbose."""
    gates = stage["gates"]
    shown = gates if verbose else [gate for gate in gates if gate["verdict"] != "pass"]
    count = sum(gate["verdict"] == "pass" for gate in gates)
    told = f"{count} of {len(gates)} gates passed, {stage['seconds']:.0f} s"
    console.print(f"\n[bold]stage {name}[/]: {told}", highlight=False)
    if shown and not narrow:
        console.print(_gates(name, shown))
    for gate in shown if narrow else []:
        colour = COLOURS[gate["verdict"]]
        console.print(f"[{colour}]{gate['verdict']}[/] [bold]{plain(gate['gate'])}[/]", highlight=False)
        console.print(f"  {gate['metric']} {reading(gate)}, {bound(gate)}", highlight=False, markup=False)
        if gate["verdict"] != "pass":
            console.print(f"  {gate['code']}: {advice(gate)}", highlight=False, markup=False)


def _gates(name: str, gates: list[dict[str, Any]]) -> Table:
    """Narrow enough for 80 columns: the metric stands under its gate, the interval under its value, the hint under
    both."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), expand=False)
    table.add_column("gate and metric", overflow="fold", ratio=1)
    for column in ("value", "threshold", "margin", "verdict"):
        table.add_column(column, justify="left" if column == "verdict" else "right", no_wrap=True)
    for gate in gates:
        colour, room = COLOURS[gate["verdict"]], margin(gate)
        told = f"[bold]{plain(gate['gate'].removeprefix(f'{name}/'))}[/]\n[dim]{plain(gate['metric'])}[/]"
        if gate["verdict"] != "pass":
            told += f"\n[{colour}]{plain(gate['code'])}: {plain(advice(gate))}[/]"
        table.add_row(
            told,
            plain(reading(gate).replace(" [", "\n[")),
            bound(gate).replace("at least", ">=").replace("at most", "<=").replace("above", ">"),
            "" if room is None else f"{room:+.0%}" if abs(room) < 10 else "far" if room > 0 else "far off",
            f"[{colour}]{gate['verdict']}[/]",
        )
    return table


def _print_scores(console: Console, evaluation: dict[str, Any]) -> None:
    """Two lines a score of what base and candidate draw."""
    rows = evaluated_rows(evaluation)
    if rows:
        console.print("\n[bold]samples[/]", highlight=False)
    for row in rows:
        sides = f"{number_text(row['base'])} to {number_text(row['candidate'])}"
        told = f"{sides}, {row['sense']}" if row["sense"] else row["note"]
        console.print(f"{row['label']}: {told}", highlight=False, markup=False)
        if is_number(row["true"]):
            console.print(f"  true images: {number_text(row['true'])}", highlight=False, markup=False)
    if told := evaluated_on(evaluation):
        console.print(told, highlight=False, markup=False, style="dim")


def _print_race(console: Console, strategy: dict[str, Any], *, narrow: bool) -> None:
    """Every strategy's error after the race, and a forecast where it means something."""
    candidates = strategy["candidates"]
    if not candidates:
        return
    if narrow:
        console.print("\n[bold]strategies[/]")
        for row in candidates:
            told = f"error {number_text(row['relative_error'], '.3f')}, {outcome(row, strategy)}"
            console.print(f"{strategy_name(row, strategy)}: {told}", highlight=False, markup=False)
    else:
        table = Table(title="strategies", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
        table.add_column("strategy", overflow="fold")
        table.add_column("error, base = 1\nstart -> end", justify="right")
        table.add_column(f"steps to base quality\n({level(strategy)})", justify="right", overflow="fold")
        for row in candidates:
            table.add_row(plain(strategy_name(row, strategy)), _course(row), plain(outcome(row, strategy)))
        console.print(table)
    for told in race_lines(strategy):
        console.print(told, highlight=False, markup=False, soft_wrap=True)


def race_lines(strategy: dict[str, Any]) -> list[str]:
    """Below the table of strategies: who left the race and why, what it says, and where it cannot tell."""
    rows, lines = strategy["candidates"], []
    lines += [f"{row['name']} left the race: {row['diverged']}" for row in rows if row.get("diverged")]
    return [*lines, *race_answer(strategy), *([told] if (told := in_doubt(strategy)) else [])]


def strategy_name(row: dict[str, Any], strategy: dict[str, Any]) -> str:
    return str(row["name"]) + (f" ({chosen_word(strategy)})" if row["name"] == strategy["recommended"] else "")


def _course(row: dict[str, Any]) -> str:
    errors = row.get("relative_errors") or []
    start = f"{number_text(errors[0], '.3f')} -> " if errors else ""
    return start + number_text(row["relative_error"], ".3f")


def _layers(reading: dict[str, Any]) -> Table:
    table = Table(title="layers of the text encoder, against the base's caption features", title_justify="left")
    for column in ("layer", "held-out error", "more than the record's own"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    ranked = sorted((r for r in reading["layers"] if r["error"] is not None), key=lambda row: row["error"])
    for row in ranked + [r for r in reading["layers"] if r["error"] is None]:
        said = [
            word for word, layer in (("used", reading["used"]), ("better", reading["best"])) if layer == row["layer"]
        ]
        said = said if reading["best"] != reading["used"] else said[:1]
        name = f"{row['layer']} ({', '.join(said)})" if said else str(row["layer"])
        more = f"{row['more']:+.3f} +- {row['noise']:.3f}" if row["more"] is not None else row["note"]
        table.add_row(name, number_text(row["error"]), more)
    return table


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
