"""A folder of pictures with `.txt` captions beside them, and CSV or JSONL manifests."""

import json
from pathlib import Path

import pandas as pd

from sanakit.data.base import MAX_PIXELS, Pictures
from sanakit.errors import SanakitError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
MAX_BYTES = 4 * MAX_PIXELS


def read_folder(folder: Path) -> Pictures:
    """Every picture below `folder`; the caption is the .txt of the same stem, one caption a line."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise SanakitError("SK0401", f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    rows = []
    for path in paths:
        text = path.with_suffix(".txt")
        captions = text.read_text(encoding="utf-8", errors="replace").splitlines() if text.is_file() else []
        rows.append((path.relative_to(folder).as_posix(), captions, path))
    return _collect(str(folder), rows)


def read_manifest(path: Path) -> Pictures:
    """Rows with `image` (path relative to the manifest) and `caption` (a string, or a list in JSONL)."""
    if not path.is_file():
        raise SanakitError("SK0401", f"manifest {path} does not exist")
    try:
        if path.suffix == ".csv":
            records = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
        else:
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (ValueError, UnicodeDecodeError) as error:
        raise SanakitError("SK0401", f"manifest {path} cannot be read: {error}") from error
    rows = []
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or not {"image", "caption"} <= record.keys():
            raise SanakitError("SK0401", f"{path} row {number}: expected keys image and caption, found {record!r:.80}")
        caption = record["caption"]
        captions = [str(c) for c in caption] if isinstance(caption, list) else [str(caption)]
        rows.append((str(record["image"]), captions, path.parent / str(record["image"])))
    if not rows:
        raise SanakitError("SK0401", f"manifest {path} has no rows")
    return _collect(str(path), rows)


def _collect(source: str, rows: list[tuple[str, list[str], Path]]) -> Pictures:
    pictures = Pictures(source=source, names=[], captions=[], images=[])
    for name, captions, path in rows:
        if not path.is_file():
            pictures.ledger.append({"name": name, "reason": "file does not exist"})
        elif path.stat().st_size > MAX_BYTES:
            pictures.ledger.append({"name": name, "reason": f"{path.stat().st_size} bytes, cap {MAX_BYTES}"})
        else:
            pictures.names.append(name)
            pictures.captions.append([c.strip() for c in captions if c.strip()])
            pictures.images.append(path.read_bytes())
    return pictures
