"""Standard output of a command with --json: one JSON document, whatever libraries and plugins print."""

import codecs
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

_document: list[TextIO] = []  # where the document goes while everything else is sent to standard error


@contextmanager
def document_alone(wanted: bool) -> Iterator[None]:
    """While it lasts, and where it is wanted, only `print_json` reaches standard output."""
    if not wanted:
        yield
        return
    _document.append(sys.stdout)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = _document.pop()


def open_streams() -> None:
    """A stream that the shell has closed (`>&-`) leads nowhere. In the order of their numbers: no file that is opened
    later gets the number of one, and with it what a library prints."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115  as long as the process
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def tolerate_locale() -> None:
    """Characters that the terminal's or the pipe's encoding does not have are printed as escapes, and end no command:
    names of files and captions hold any."""
    for stream in (sys.stdout, sys.stderr):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        if hasattr(stream, "reconfigure") and codecs.lookup(encoding).name != "utf-8":
            stream.reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    """One document of strict JSON: NaN and infinity, which JSON does not have, become null."""
    out = _document[-1] if _document else sys.stdout
    out.write(json.dumps(strict(value), indent=1, default=str, allow_nan=False) + "\n")
    out.flush()


def strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    return [strict(item) for item in value] if isinstance(value, list | tuple) else value
