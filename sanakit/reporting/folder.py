"""What is read of a run folder for a page: its records, and images as data URIs; nothing outside it."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from sanakit.errors import SanakitError
from sanakit.records import MISREAD, Row, read_json

IMAGES = {".png": "image/png", ".webp": "image/webp"}


@contextmanager
def read_as_run(run_dir: Path) -> Iterator[None]:
    """Raises SK0109 for a folder that is no run, or that holds what no run writes."""
    if not (run_dir / "validation.json").is_file():
        raise SanakitError("SK0109", f"{run_dir} holds no validation.json")
    try:
        yield
    except (*MISREAD, UndefinedError) as error:
        raise SanakitError("SK0109", f"{run_dir} does not read as a run: {type(error).__name__}: {error}") from error


def figures(run_dir: Path) -> list[Row]:
    rows = [
        {"section": "samples", "title": "", "caption": "", "file": ""} | f
        for f in read_json(run_dir / "figures.json", [])
    ]
    return [row | {"data": data} for row in rows if (data := embedded(run_dir, row["file"]))]


def embedded(run_dir: Path, name: str) -> str | None:
    """An image as a data URI; only files inside the run folder (links are followed first) and only images."""
    kind = IMAGES.get(Path(name).suffix.lower())
    if kind is None or "\0" in name:
        return None
    path = (run_dir / name).resolve()
    if not path.is_relative_to(run_dir.resolve()) or not path.is_file():
        return None
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flattened(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
