"""Standard output of a command with --json: one JSON document, whatever libraries and plugins print."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
