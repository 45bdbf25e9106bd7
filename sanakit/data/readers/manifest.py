"""CSV and JSONL manifests: a row names an image, relative to the manifest, and its caption."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sanakit.data.captions import as_captions, as_scores, decode_text, kind_of
from sanakit.data.readers.sources import read_bytes
from sanakit.data.survey import reason_of
from sanakit.data.table import ImageDataset
from sanakit.errors import SanakitError


def read_manifest(path: Path) -> ImageDataset:
    """Rows with `image` (path relative to the manifest) and `caption` (a string, or a list in JSONL, then perhaps with
    `scores`). A row that cannot be read is set aside; SK0401 where the manifest as a whole cannot."""
    if not path.is_file():
        raise SanakitError("SK0401", f"manifest {path} does not exist")
    dataset = ImageDataset(source=str(path), names=[], captions=[], images=[])
    try:
        data = read_bytes(path)
        records = list(_csv_rows(data) if path.suffix.lower() == ".csv" else _json_rows(data))
    except (OSError, ValueError) as error:
        raise SanakitError("SK0401", f"manifest {path} cannot be read: {reason_of(error)}") from error
    if not records:
        raise SanakitError("SK0401", f"manifest {path} has no rows")
    for number, record in enumerate(records, 1):
        name = f"{path.name} row {number}"
        try:
            if isinstance(record, ValueError):
                raise record
            if not isinstance(record, dict) or not {"image", "caption"} <= record.keys():
                raise ValueError(f"not with the keys image and caption: found {record!r:.80}")
            if not isinstance(record["image"], str) or not record["image"].strip():
                raise ValueError(f"no image: its path is {kind_of(record['image'] or None)}")
            name = record["image"]
            captions, scores = as_captions(record["caption"]), as_scores(record.get("scores"))
            dataset.add(name, captions, read_bytes(path.parent / name), scores)
        except (OSError, ValueError) as error:
            dataset.set_aside(name, reason_of(error))
    return dataset


def _csv_rows(data: bytes) -> Iterator[Any]:
    """Rows as dictionaries, or a ValueError in the place of one. Bytes that are no UTF-8 stay in their field as lone
    surrogates, which ImageDataset.add refuses. Raises ValueError for two columns of one name, of which one would be
    lost."""
    rows = csv.DictReader(io.StringIO(decode_text(data, "surrogateescape"), newline=""), strict=True)
    try:
        columns = list(rows.fieldnames or ())
        if twice := next((name for name in ("image", "caption") if columns.count(name) > 1), None):
            raise ValueError(f"{columns.count(twice)} columns are named {twice}, expected one")
        for row in rows:
            if None in row:
                count = len(row) - 1 + len(row[None])
                yield ValueError(f"{count} fields under {len(columns)} columns: a comma in a caption needs quotes")
            else:
                yield row
    except csv.Error as error:  # a quote that never ends would swallow the rest
        raise ValueError(f"after line {rows.line_num}: {error}") from error


def _json_rows(data: bytes) -> Iterator[Any]:
    """A value a line, or a ValueError in the place of one."""
    whole = data.startswith((b"\xff\xfe", b"\xfe\xff"))  # UTF-16 cannot be cut at bytes
    for line in decode_text(data).encode().split(b"\n") if whole else data.split(b"\n"):
        if not line.strip(b"\xef\xbb\xbf \t\r"):
            continue
        try:
            yield json.loads(decode_text(line))
        except (ValueError, RecursionError) as error:
            yield ValueError(f"no JSON: {error}")
