"""A folder of pictures with `.txt` captions beside them, CSV or JSONL manifests, and WebDataset tar shards."""

import json
import re
import tarfile
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


def read_shards(pattern: str) -> Pictures:
    """WebDataset shards: `DIR/{00000..00009}.tar` (inclusive) or one `.tar`; members of one stem are one sample.

    Read in memory, in order, with our own decoders: picture suffixes, `.txt` (a caption a line) and `.json` (`caption`, a
    string or a list). Nothing is unpickled, unpacked to disk or run; members of any other kind are left alone.
    """
    if pattern.startswith("pipe:") or "://" in pattern:
        raise SanakitError("SK0401", f"{pattern}: shards are local files; pipes and addresses are not opened")
    pictures = Pictures(source=pattern, names=[], captions=[], images=[])
    for shard in _expand(pattern):
        if not shard.is_file():
            raise SanakitError("SK0401", f"shard {shard} does not exist")
        samples: dict[str, dict[str, bytes]] = {}
        try:
            with tarfile.open(shard) as tar:
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
            raise SanakitError("SK0401", f"shard {shard} cannot be read: {error}") from error
        for stem, parts in samples.items():
            name = f"{shard.name}/{stem}"
            image = next((parts[s] for s in SUFFIXES if s in parts), None)
            if image is None:
                pictures.ledger.append({"name": name, "reason": f"no picture, found {', '.join(parts)}"})
                continue
            pictures.names.append(name)
            pictures.captions.append(_captions(parts))
            pictures.images.append(image)
    return pictures


def _expand(pattern: str) -> list[Path]:
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not braces:
        return [Path(pattern).expanduser()]
    first, last = braces[1], braces[2]
    numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return [Path(pattern[: braces.start()] + n + pattern[braces.end() :]).expanduser() for n in numbers]


def _captions(parts: dict[str, bytes]) -> list[str]:
    lines = parts.get(".txt", b"").decode("utf-8", errors="replace").splitlines()
    if ".json" in parts:
        try:
            record = json.loads(parts[".json"])
        except ValueError:
            record = None
        stated = record.get("caption", []) if isinstance(record, dict) else []
        lines += [str(c) for c in stated] if isinstance(stated, list) else [str(stated)]
    return [line.strip() for line in lines if line.strip()]


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
