"""What the decision study has measured, on disk: one JSON line a finished run.

The runs of the evaluation third lie in a file of their own. `read_evaluation` alone reads it, for the command that
evaluates the forecast once at the end; who fits or draws anything reads FITTING. LEDGER says which runs are done, and
nothing of what they measured but whether a second seed is due.
"""

import base64
import fcntl
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parents[1] / "results"
FITTING = "study_runs.jsonl"
EVALUATION = "study_evaluation.jsonl"
LEDGER = "study_ledger.jsonl"
BASES = "study_bases.json"


def add_run(row: dict[str, Any], *, evaluation: bool, late: bool, results: Path = RESULTS) -> None:
    """Append a finished run: its row, then its line of the ledger. late: its swap is due a second seed."""
    append(results / (EVALUATION if evaluation else FITTING), row)
    facts = {key: row[key] for key in ("run", "swap", "seed", "plan", "base_fingerprint", "minutes")}
    append(results / LEDGER, facts | {"late": late})


def append(path: Path, row: dict[str, Any]) -> None:
    """One more line; half a line at the end, of a killed writer, is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")


def read_ledger(results: Path = RESULTS) -> list[dict[str, Any]]:
    return read_lines(results / LEDGER)


def read_fitting(results: Path = RESULTS) -> list[dict[str, Any]]:
    """The runs that rules may be made from; of a run that was repeated the last."""
    return last_of_each(read_lines(results / FITTING))


def read_evaluation(results: Path = RESULTS) -> list[dict[str, Any]]:
    """The runs of the evaluation third. Called by `decision_study.py evaluate` and by nothing else."""
    return last_of_each(read_lines(results / EVALUATION))


def last_of_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({row["run"]: row for row in rows}.values())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a file, none where there is no file; half a line at its end, of a killed writer, is left out."""
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def read_bases(results: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """By name of a base: {"fingerprint", "data", "recipe", "quality", "earlier"}, as `study_world.py base` left it.
    earlier: other fingerprints of the same recipe on the same data, as processors round differently and versions of
    sanakit hash differently: runs on them count."""
    path = results / BASES
    return json.loads(path.read_text()) if path.is_file() else {}


def write_base(name: str, facts: dict[str, Any], results: Path = RESULTS) -> None:
    """A base made anew by another recipe, or on other data, makes the runs on earlier ones void."""
    bases = read_bases(results)
    known = bases.get(name, {})
    if known and all(known.get(key) == facts.get(key) for key in ("recipe", "data")):
        earlier = {*known.get("earlier", []), known["fingerprint"]} - {facts["fingerprint"]}
        facts = facts | {"earlier": sorted(earlier)}
    bases[name] = facts
    (results / BASES).write_text(json.dumps(dict(sorted(bases.items())), indent=1) + "\n")


def packed(values: np.ndarray) -> dict[str, Any]:
    """An array in half precision as text: a 20th of what its numbers would take."""
    data = zlib.compress(np.ascontiguousarray(values, dtype="<f2").tobytes(), 9)
    return {"shape": list(values.shape), "half": base64.b64encode(data).decode()}


def unpacked(record: dict[str, Any]) -> np.ndarray:
    data = zlib.decompress(base64.b64decode(record["half"]))
    return np.frombuffer(data, dtype="<f2").reshape(record["shape"]).astype(float)


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Is this process the one that works in `folder`? The claim ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "claim").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
