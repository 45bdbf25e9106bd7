"""Files of a run folder: JSON and lines of JSON, read as what a run writes."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from sanakit.contracts import Verdict

Row = dict[str, Any]
ROWS = {  # the key under which a file holds a list of objects, and what each of them has
    "component.json": ("rows", "metric"),
    "evaluation.json": ("rows", "metric"),
    "plan.json": ("groups", "group"),
    "strategy.json": ("candidates", "name"),
}
# what reading a record raises where the file was edited, or another program wrote it
MISREAD = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError)


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def read_json(path: Path, default: Any) -> Any:
    """The file's content, of the default's type where there is one; rows in it are objects. ValueError names the
    file."""
    if not path.is_file():
        return default
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if default is not None and not isinstance(value, type(default)):
        raise ValueError(f"{path.name} holds {type(value).__name__}, expected {type(default).__name__}")
    _require_rows(value, path.name)
    return value


def read_lines(path: Path) -> list[Row]:
    """Rows of a JSONL file. A killed run may leave half a last line; ValueError for anything else that is no object."""
    *complete, last = read_text(path).split("\n")  # not splitlines: it also splits at U+2028 inside strings
    rows = [json.loads(line) for line in complete if line.strip()]
    with suppress(json.JSONDecodeError):
        rows += [json.loads(last)] if last.strip() else []
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path.name} holds a line that is no object")
    return rows


def read_validation(path: Path) -> Row:
    """validation.json with its stages, each with a verdict and gates; without stages where there is no file.
    ValueError for anything else."""
    validation: Row = read_json(path, {})
    validation["stages"] = validation.get("stages") or {}
    try:
        for stage in validation["stages"].values():
            verdicts = [stage["verdict"], *(gate["verdict"] for gate in stage["gates"])]
            if not all(verdict in list(Verdict) for verdict in verdicts):
                raise ValueError(f"verdicts are {verdicts!r:.60}, expected of {', '.join(Verdict)}")
    except MISREAD as error:
        raise ValueError(f"{path.name}: its stages do not read: {type(error).__name__}: {error}") from error
    return validation


def _require_rows(value: Any, name: str) -> None:
    rows, key = value, ""
    if isinstance(value, dict):
        listed, key = ROWS.get(name, ("", ""))
        rows = value.get(listed)
    if rows and not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise ValueError(f"{name}: {rows!r:.60} is no list of objects")
    if key and any(key not in row for row in rows or []):
        raise ValueError(f"{name} holds an object without {key}")
