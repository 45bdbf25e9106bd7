"""Live progress on standard error: bars on a terminal, lines elsewhere, or one JSON object a line for a program."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
from rich.text import Text

from sanakit.tracebacks import note_work

QUIET_BELOW = 1.0  # seconds under which a finished label is not told on something that is no terminal
JSON_EVERY = 1.0  # seconds between two lines of one label for a program
Advance = Callable[[str, int, int], None]


class Throughput(ProgressColumn):
    """Items a second of a bar, from rich's own moving average."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


def progress_console() -> Console:
    """Of standard error. Jupyter sets FORCE_COLOR, by which rich takes a pipe for a terminal and draws a bar's every
    state below the last one; what is no terminal gets lines."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return Console(stderr=True, force_terminal=None if is_terminal else False)


@contextmanager
def progress_display() -> Iterator[Advance]:
    """A callback (label, done, total); one bar a label with throughput and time left. On something that is no terminal,
    a line when a label begins and one with its throughput when it ends."""
    console = progress_console()
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
            note_work(label, done, total)
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


@contextmanager
def progress_of(kind: str) -> Iterator[Advance]:
    """auto: bars, or lines where standard error is no terminal. json: for a program. none: nothing."""
    if kind == "json":
        yield json_progress()
    elif kind == "none":
        yield _nothing
    else:
        with progress_display() as advance:
            yield advance


def json_progress() -> Advance:
    """One JSON object a line, {label, done, total, seconds}: when a label begins, when it ends, and once a second
    between."""
    begun: dict[str, float] = {}
    told: dict[str, float] = {}

    def advance(label: str, done: int, total: int) -> None:
        note_work(label, done, total)
        now = time.perf_counter()
        first = label not in begun
        begun.setdefault(label, now)
        if first or done >= total or now - told[label] >= JSON_EVERY:
            row = {"label": label, "done": done, "total": total, "seconds": round(now - begun[label], 3)}
            print(json.dumps(row), file=sys.stderr, flush=True)
            told[label] = now
        if done >= total:
            begun.pop(label)

    return advance


def _nothing(label: str, done: int, total: int) -> None:
    """Progress that nobody asked for: noted for the message of an error alone."""
    note_work(label, done, total)
