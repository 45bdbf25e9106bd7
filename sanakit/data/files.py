"""A folder of images with `.txt` captions beside them, and CSV or JSONL manifests.

Every file seen is read, set aside with the reason in the ledger, or counted as ignored.
"""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from sanakit.data.base import Pictures, safe_name
from sanakit.data.captions import as_captions, as_scores, decode_text, file_captions, kind_of
from sanakit.data.images import DECODERS, FOREIGN, HEAD, MAX_PIXELS, SUFFIXES, found_format
from sanakit.data.survey import HIDDEN_FILES, HIDDEN_FOLDERS, Survey, is_hidden, reason_of
from sanakit.errors import SanakitError

MAX_BYTES = 4 * MAX_PIXELS
CAPTION_LIKE = (".caption", ".captions", ".tags", ".json")  # named where an image has no .txt


def read_folder(folder: Path, captions: str = "lines") -> Pictures:
    """Every image below `folder`, linked folders included; the caption is the .txt of the same stem.

    captions: `lines`, a caption a line, or `whole`, the file is one caption. Hidden files and folders are skipped. Raises
    SK0401 where there is no image, naming what was found.
    """
    pictures = Pictures(source=str(folder), names=[], captions=[], images=[])
    files = walk(folder, pictures)
    texts: dict[str, Path] = {}
    for name, path in files:
        if path.suffix.lower() == ".txt" and texts.setdefault(stem_of(name), path) is not path:
            pictures.survey.ignored.add(".txt that differ from another in capitals alone", name)
    beside = {stem_of(name): path.name for name, path in files if path.suffix.lower() in CAPTION_LIKE}
    used = set()
    for name, path in files:
        try:
            if path.suffix.lower() == ".txt" or not is_image(name, path, pictures.survey):
                continue
            used.add(stem_of(name))
            text = texts.get(stem_of(name))
            if text is None:
                raise ValueError(_no_caption(path, beside.get(stem_of(name))))
            own = file_captions(read_bytes(text), captions)
            if not own:
                raise ValueError(f"no caption: {text.name} is empty")
            pictures.add(name, own, read_bytes(path))
            if len(own) > 1:
                pictures.survey.lines[name] = len(own)
        except (OSError, ValueError) as error:
            used.add(stem_of(name))
            pictures.set_aside(name, reason_of(error))
    for name, _ in files:
        if PurePosixPath(name).suffix.lower() == ".txt" and stem_of(name) not in used:
            pictures.survey.ignored.add(".txt without an image", name)
    if not pictures.names and not pictures.ledger:
        found = pictures.survey.ignored.text() or "nothing"
        raise SanakitError("SK0401", f"{folder} holds no image, found {found}")
    return pictures


def walk(folder: Path, pictures: Pictures) -> list[tuple[str, Path]]:
    """Every file below `folder` that is not hidden, by its name relative to it (safe_name), sorted. A linked folder is read where it
    was not read before."""
    files, seen, survey = [], set(), pictures.survey
    pending = [("", folder)]

    def refused(error: OSError) -> None:
        pictures.set_aside(os.path.relpath(str(error.filename), folder), f"folder {reason_of(error)}")

    while pending:
        prefix, start = pending.pop(0)
        for root, names, own in os.walk(start, onerror=refused):
            place = os.path.realpath(root)
            inner = prefix + Path(root).relative_to(start).as_posix().removeprefix(".")
            inner = safe_name(f"{inner.strip('/')}/" if inner.strip("/") else "")
            if place in seen:
                survey.ignored.add("folders linked twice", inner)
                names.clear()
                continue
            seen.add(place)
            for name in [n for n in names if is_hidden(n)]:
                survey.ignored.add(HIDDEN_FOLDERS, inner + safe_name(name))
            names[:] = sorted(n for n in names if not is_hidden(n))
            links = [n for n in names if (Path(root) / n).is_symlink()]
            pending += [(f"{inner}{name}/", Path(root) / name) for name in links]  # after every folder that is no link
            for name in own:
                if is_hidden(name):
                    survey.ignored.add(HIDDEN_FILES, inner + safe_name(name))
                else:
                    files.append((inner + safe_name(name), Path(root) / name))
    return sorted(files)


def is_image(name: str, path: Path, survey: Survey) -> bool:
    """Whether a file is an image, by its suffix or else by its first bytes; what is neither is counted as ignored. Raises
    ValueError for an image of a format that is not read."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if not path.is_file():
        survey.ignored.add("links and devices", name)
        return False
    with path.open("rb") as file:
        return is_image_content(name, file.read(HEAD), survey)


def is_image_content(name: str, head: bytes, survey: Survey) -> bool:
    """The same for a file of a suffix that says nothing, by its first bytes."""
    found = found_format(head)
    if found in FOREIGN:
        raise ValueError(f"format {found} is not read")
    if found == "TIFF":  # camera raw files look so: what opens is a preview
        raise ValueError(f"format {PurePosixPath(name).suffix or 'without suffix'} with TIFF inside is not read")
    if found in DECODERS:
        return True
    survey.ignore(name)
    return False


def read_manifest(path: Path) -> Pictures:
    """Rows with `image` (path relative to the manifest) and `caption` (a string, or a list in JSONL, then perhaps with
    `scores`). A row that cannot be read is set aside; SK0401 where the manifest as a whole cannot."""
    if not path.is_file():
        raise SanakitError("SK0401", f"manifest {path} does not exist")
    pictures = Pictures(source=str(path), names=[], captions=[], images=[])
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
            pictures.add(name, captions, read_bytes(path.parent / name), scores)
        except (OSError, ValueError) as error:
            pictures.set_aside(name, reason_of(error))
    return pictures


def _csv_rows(data: bytes) -> Iterator[Any]:
    """Rows as dictionaries, or a ValueError in the place of one. Bytes that are no UTF-8 stay in their field as lone
    surrogates, which Pictures.add refuses. Raises ValueError for two columns of one name, of which one would be lost."""
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


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises ValueError for one that is missing or too large, OSError for one that cannot be read."""
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        what = "link to a file that does not exist" if path.is_symlink() else "file does not exist"
        raise ValueError(what) from error
    if not path.is_file():
        raise ValueError("no file")
    if size > MAX_BYTES:
        raise ValueError(f"too large: {size} bytes, cap {MAX_BYTES}")
    return path.read_bytes()


def stem_of(name: str) -> str:
    """The relative path without its last suffix: what an image and its caption share."""
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).suffix else name


def _no_caption(path: Path, beside: str | None) -> str:
    return f"no caption: {path.stem}.txt does not exist" + (f", found {beside}" if beside else "")
