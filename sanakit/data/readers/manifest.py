"""CSV and JSONL manifests: a row names an image, relative to the manifest, and its caption."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sanakit.data.captions import BASE_KEYS, as_captions, as_scores, base_captions, decode_text, kind_of
from sanakit.data.names import safe_name
from sanakit.data.part import Part, Plan, examine, plan_files, stamp_of
from sanakit.data.places import whole_file
from sanakit.data.readers.folder import cut_by_name
from sanakit.data.readers.sources import read_bytes
from sanakit.data.survey import reason_of
from sanakit.errors import SanakitError

IMAGE_KEYS = ("image", "file_name")
CAPTION_KEYS = ("caption", "text", "prompt")


def plan_manifest(path: Path) -> Plan:
    """Rows with `image` or `file_name` (path relative to the manifest) and `caption`, `text` or `prompt` (a string, or
    a list in JSONL, then perhaps with `scores`), and perhaps `caption_base` or `captions_base`, what the base reads in
    its place. CSV may be separated by commas, semicolons or tabs. A row that cannot
    be read is set aside; SK0401 where the manifest as a whole cannot."""
    if not path.is_file():
        raise SanakitError("SK0401", f"manifest {path} does not exist")
    try:
        data = read_bytes(path)
        records = list(_json_rows(data) if path.suffix.lower() == ".jsonl" else _csv_rows(data))
    except (OSError, ValueError) as error:
        raise SanakitError("SK0401", f"manifest {path} cannot be read: {reason_of(error)}") from error
    if not records:
        raise SanakitError("SK0401", f"manifest {path} has no rows")
    plan, rows = Plan(source=str(path)), _rows_by_image(records, path.name)
    plan.ledger += [{"name": safe_name(name), "reason": safe_name(reason)} for name, reason in rows.refused]
    for some in cut_by_name(rows.rows):
        stamps = [stamp_of(path.parent / row[0]) for row in some]
        plan.parts.append(plan_files("manifest", {"folder": str(path.parent.absolute()), "rows": some}, stamps))
    return plan


@dataclass
class _Found:
    rows: list[tuple[str, list[str], list[float] | None, list[str] | None]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


def _rows_by_image(records: list[Any], manifest: str) -> _Found:
    """(path, captions, scores, captions of the base) of every image, in the order of its first row; further rows of an
    image add captions."""
    listed, places = _Found(), dict[str, int]()
    for number, record in enumerate(records, 1):
        name = f"{manifest} row {number}"
        try:
            image = _image_of(record)
            name = image
            captions, scores = as_captions(record[_caption_key(record)]), as_scores(record.get("scores"))
            base = base_captions(record)
            if base is not None and len(base) != len(captions):
                raise ValueError(f"{len(base)} captions_base of {len(captions)} captions")
            if broken := next((text for text in (*captions, *(base or ())) if safe_name(text) != text), None):
                raise ValueError(f"a caption is not valid Unicode: {safe_name(broken)[:60]!r}")
            if image not in places:
                places[image] = len(listed.rows)
                listed.rows.append((image, captions, scores, base))
                continue
            _, before, scored, before_base = listed.rows[places[image]]
            if scores or scored:
                raise ValueError("second row of this image, with scores: state all captions and scores in one row")
            if (base is None) != (before_base is None):
                raise ValueError("second row of this image: only one of the two has captions_base")
            before += captions
            if before_base is not None and base is not None:
                before_base += base
        except ValueError as error:
            listed.refused.append((name, reason_of(error)))
    return listed


def _image_of(record: Any) -> str:
    """The path of the image. Raises ValueError for a row that is none."""
    if isinstance(record, ValueError):
        raise record
    key = next((key for key in IMAGE_KEYS if isinstance(record, dict) and key in record), None)
    if key is None or _caption_key(record) not in record:
        raise ValueError(f"not with the keys image and caption: found {record!r:.80}")
    image = record[key]
    if not isinstance(image, str) or not image.strip():
        raise ValueError(f"no image: its path is {kind_of(image or None)}")
    return image


def _caption_key(record: dict[str, Any]) -> str:
    """The column of the captions; where there are several the first of CAPTION_KEYS."""
    return next((key for key in CAPTION_KEYS if key in record), CAPTION_KEYS[0])


def fill_part(part: Part, payload: dict[str, Any]) -> None:
    """Read the images that rows [path, captions, scores, captions of the base] name."""
    for name, captions, scores, base in payload["rows"]:
        try:
            path = Path(payload["folder"]) / name
            data = read_bytes(path)
            part.add(name, captions, examine(data, whole_file(path, len(data))), scores, base=base)
        except (OSError, ValueError) as error:
            part.set_aside(name, reason_of(error))


def _csv_rows(data: bytes) -> Iterator[Any]:
    """Rows as dictionaries, or a ValueError in the place of one. Bytes that are no UTF-8 stay in their field as lone
    surrogates, which ImageDataset.add refuses. Raises ValueError for two columns of one name, of which one would be
    lost."""
    text = decode_text(data, "surrogateescape")
    header = text.split("\n", 1)[0]
    # the separator that gives a column of images; a comma where none does
    delimiter = next((sign for sign in ",;\t" if set(_cells(header, sign)) & set(IMAGE_KEYS)), ",")
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        columns = list(rows.fieldnames or ())
        if twice := next((name for name in (*IMAGE_KEYS, *CAPTION_KEYS, *BASE_KEYS) if columns.count(name) > 1), None):
            raise ValueError(f"{columns.count(twice)} columns are named {twice}, expected one")
        for row in rows:
            if None in row:
                count = len(row) - 1 + len(row[None])
                yield ValueError(f"{count} fields under {len(columns)} columns: a comma in a caption needs quotes")
            else:
                yield row
    except csv.Error as error:  # a quote that never ends would swallow the rest
        raise ValueError(f"after line {rows.line_num}: {error}") from error


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.strip().split(delimiter)]


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
