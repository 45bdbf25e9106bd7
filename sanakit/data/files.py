"""A folder of pictures with `.txt` captions beside them, CSV or JSONL manifests, and WebDataset tar shards.

Shards may lie behind an address (`s3://`, `gs://`, `https://` ...), read by fsspec and its packages.
"""

import json
import re
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from sanakit.data.base import MAX_PIXELS, Pictures, safe_name
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
        rows.append((path.relative_to(folder).as_posix(), captions, path, None))
    return _collect(str(folder), rows)


def read_manifest(path: Path) -> Pictures:
    """Rows with `image` (path relative to the manifest) and `caption` (a string, or a list in JSONL, then perhaps with
    `scores`)."""
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
        scores = record.get("scores")
        if scores is not None and not (isinstance(scores, list) and all(isinstance(s, int | float) for s in scores)):
            raise SanakitError("SK0401", f"{path} row {number}: scores is {scores!r:.40}, expected a number a caption")
        rows.append((str(record["image"]), captions, path.parent / str(record["image"]), scores))
    if not rows:
        raise SanakitError("SK0401", f"manifest {path} has no rows")
    return _collect(str(path), rows)


def read_shards(pattern: str) -> Pictures:
    """WebDataset shards: `DIR/{00000..00009}.tar` (inclusive) or one `.tar`; members of one stem are one sample.

    Read in memory, in order, with our own decoders: picture suffixes, `.txt` (a caption a line) and `.json` (`caption`, a
    string or a list). Nothing is unpickled, unpacked to disk or run; members of any other kind are left alone.
    """
    pictures = Pictures(source=pattern, names=[], captions=[], images=[])
    for source in expand(pattern):
        shard = PurePosixPath(source)
        samples: dict[str, dict[str, bytes]] = {}
        try:
            with open_source(source) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    stem, dot, suffix = member.name.rpartition(".")
                    suffix = f".{suffix.lower()}"
                    if member.isfile() and dot and suffix in (*SUFFIXES, ".txt", ".json"):
                        if member.size > MAX_BYTES:
                            reason = f"{member.size} bytes, cap {MAX_BYTES}"
                            pictures.ledger.append({"name": f"{shard.name}/{member.name}", "reason": reason})
                            continue
                        file = tar.extractfile(member)
                        assert file is not None
                        samples.setdefault(stem, {})[suffix] = file.read()
        except (tarfile.TarError, OSError) as error:
            raise SanakitError("SK0401", f"shard {source} cannot be read: {error}") from error
        for stem, parts in samples.items():
            name = safe_name(f"{shard.name}/{stem}")
            image = next((parts[s] for s in SUFFIXES if s in parts), None)
            if image is None:
                pictures.ledger.append({"name": name, "reason": f"no picture, found {', '.join(parts)}"})
                continue
            captions, scores = _captions(parts)
            pictures.add(name, captions, image, scores)
    return pictures


def expand(pattern: str) -> list[str]:
    """The sources that `{00000..00009}` stands for, both ends included."""
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not braces:
        return [pattern]
    first, last = braces[1], braces[2]
    numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return [pattern[: braces.start()] + n + pattern[braces.end() :] for n in numbers]


def open_source(source: str) -> Any:
    """A file or an address for reading, in order. Raises SK0401 for a pipe, SK0901 for an address whose package is missing."""
    if source.startswith("pipe:"):
        raise SanakitError("SK0401", f"{source}: commands are not run")
    if "://" not in source:
        path = Path(source).expanduser()
        if not path.is_file():
            raise SanakitError("SK0401", f"shard {path} does not exist")
        return path.open("rb")
    import fsspec

    try:
        return fsspec.open(source, "rb").open()
    except ImportError as error:
        raise SanakitError("SK0901", f"{source}: {error}", fix="Install the package that the message names.") from error
    except ValueError as error:  # a protocol that nobody knows
        raise SanakitError("SK0401", f"{source}: {error}") from error


def _captions(parts: dict[str, bytes]) -> tuple[list[str], list[float] | None]:
    """Captions, and their scores where a .json states them (`caption` and `scores`, equally long)."""
    lines = parts.get(".txt", b"").decode("utf-8", errors="replace").splitlines()
    try:
        record = json.loads(parts.get(".json", b"null"))
    except ValueError:
        record = None
    record = record if isinstance(record, dict) else {}
    stated, scores = record.get("caption", []), record.get("scores")
    captions = [str(c) for c in stated] if isinstance(stated, list) else [str(stated)]
    if isinstance(scores, list) and all(isinstance(s, int | float) for s in scores):
        return captions, scores  # lines of the .txt have none
    return [line for line in lines + captions if line.strip()], None


def _collect(source: str, rows: list[tuple[str, list[str], Path, list[float] | None]]) -> Pictures:
    pictures = Pictures(source=source, names=[], captions=[], images=[])
    for own_name, captions, path, scores in rows:
        name = safe_name(own_name)
        if not path.is_file():
            pictures.ledger.append({"name": name, "reason": "file does not exist"})
        elif path.stat().st_size > MAX_BYTES:
            pictures.ledger.append({"name": name, "reason": f"{path.stat().st_size} bytes, cap {MAX_BYTES}"})
        else:
            pictures.add(name, captions, path.read_bytes(), scores)
    return pictures
