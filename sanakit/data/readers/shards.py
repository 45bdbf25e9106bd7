"""WebDataset tar shards, on disk or behind an address (`s3://`, `gs://`, `https://` ...) by fsspec and its packages."""

import gzip
import hashlib
import json
import shutil
import tarfile
import uuid
import zlib
from collections import Counter, defaultdict
from pathlib import PurePosixPath
from typing import Any

from sanakit.data.captions import as_captions, as_scores, base_captions, decode_text, file_captions
from sanakit.data.images import HEAD, SUFFIXES
from sanakit.data.names import safe_name
from sanakit.data.part import ImageFacts, Part, Plan, examine
from sanakit.data.places import Kind, Place
from sanakit.data.readers.sources import MAX_BYTES, is_image_content, open_source, plan_sources, stamp_of_source
from sanakit.data.survey import HIDDEN_FILES, Survey, is_hidden, reason_of
from sanakit.errors import SanakitError
from sanakit.files import cache_dir

COMPRESSED = (".tar.gz", ".tgz")
SUFFIXES_READ = (".tar", *COMPRESSED)
IMAGE, TEXT, RECORD = "image", ".txt", ".json"  # the parts of a sample


def plan_shards(pattern: str, captions: str = "lines", files: list[str] | None = None) -> Plan:
    """WebDataset shards: `DIR/{00000..00009}.tar` (inclusive), one `.tar`, or `files`; members of one stem are one
    sample. A `.tar.gz` or `.tgz` is unpacked into the cache once, as no image in it could be read without all before
    it."""
    return plan_sources("shard", pattern, files, captions=captions)


def unpacked(source: str) -> str:
    """Where a shard's members can be read by their place: the shard itself, or its unpacked copy in the cache. Raises
    SK0903 for a full disk."""
    if not source.lower().endswith(COMPRESSED):
        return source
    stamp = json.dumps(stamp_of_source(source))
    path = cache_dir() / "shards" / f"{hashlib.sha256(stamp.encode()).hexdigest()[:32]}.tar"
    if path.is_file():
        return str(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_source(source) as packed, gzip.open(packed) as stream, temporary.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
        temporary.replace(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SanakitError("SK0401", f"shard {source} cannot be read: {error}") from error
    except OSError as error:
        raise SanakitError("SK0903", f"{source} cannot be unpacked into {path.parent}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return str(path)


def fill_part(part: Part, payload: dict[str, Any]) -> None:
    """Read a shard in order, with our own decoders: an image, `.txt` (captions: a caption a line, or with `whole` one)
    and `.json` (`caption`, a string or a list, and perhaps `scores` and `captions_base`). Nothing is unpickled,
    unpacked to disk or run. A second sample of one stem is set aside; hidden members and those of any other kind are
    counted as ignored.
    """
    source, shard = unpacked(payload["source"]), payload["label"]
    try:
        with open_source(source) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            samples = _read_members(tar, source, shard, part)
            _require_end(tar, stream, source, part)
    except (tarfile.TarError, OSError) as error:
        raise SanakitError("SK0401", f"shard {source} cannot be read: {error}") from error
    for stem, parts in samples.items():
        name = f"{shard}/{stem}"
        try:
            image = parts.get(IMAGE)
            if not isinstance(image, ImageFacts):
                raise ValueError(f"no image: found {', '.join(parts)}")
            captions, scores, base, lines = _captions(parts, payload["captions"], name, part.survey)
            part.add(name, captions, image, scores, base=base, lines=lines)
        except ValueError as error:
            part.set_aside(name, reason_of(error))


def _require_end(tar: tarfile.TarFile, stream: Any, source: str, part: Part) -> None:
    """tarfile takes half a header, or a damaged one, for the end. Raises SK0401 for those; a shard that ends after a
    member, without the block of zeros that a whole one has, is counted."""
    stream.seek(tar.offset)
    end = stream.read(tarfile.BLOCKSIZE)
    if any(end) or 0 < len(end) < tarfile.BLOCKSIZE:
        raise SanakitError("SK0401", f"shard {source} is cut or damaged at byte {tar.offset}: no header of a member")
    if not end:
        part.survey.ignored.add("shards without an end mark: cut, perhaps", source)


def _read_members(tar: tarfile.TarFile, source: str, shard: str, part: Part) -> dict[str, dict[str, Any]]:
    """The parts of every sample by stem, of an image its facts; what is not kept goes to the ledger or is counted."""
    samples: dict[str, dict[str, Any]] = {}
    again: dict[str, Counter[str]] = defaultdict(Counter)  # how often each part of a stem came again
    for member in tar:
        member.name = safe_name(member.name)
        stem, dot, suffix = member.name.rpartition(".")
        if member.isdir():
            continue
        if is_hidden(member.name):
            part.survey.ignored.add(HIDDEN_FILES, member.name)
            continue
        try:
            kind, data = _read_member(tar, member, part.survey)
        except ValueError as error:
            part.set_aside(f"{shard}/{member.name}", reason_of(error))
            continue
        if not kind:
            continue
        stem = stem if dot and "/" not in suffix else member.name
        sample = samples.setdefault(stem, {})
        if kind not in sample:
            place = Place(source, Kind.BYTES, member.offset_data, len(data))
            sample[kind] = examine(data, place) if kind == IMAGE else data
            continue
        before = max(again[stem].values(), default=0)
        again[stem][kind] += 1
        if again[stem][kind] > before:
            part.set_aside(f"{shard}/{stem}", f"second sample of this key: {member.name} came before")
    return samples


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, survey: Survey) -> tuple[str, bytes]:
    """Which part of a sample a member is, and its bytes; an empty name for what is counted as ignored. Raises
    ValueError for what is set aside."""
    suffix = PurePosixPath(member.name).suffix.lower()
    file = tar.extractfile(member) if member.isreg() else None  # a link in a stream cannot be followed
    if file is None or member.issparse():
        survey.ignored.add("links and devices", member.name)
        return "", b""
    known = suffix in (*SUFFIXES, TEXT, RECORD)
    head = b"" if known else file.read(HEAD)
    if not known and not is_image_content(member.name, head, survey):
        return "", b""
    if member.size > MAX_BYTES:
        raise ValueError(f"too large: {member.size} bytes, cap {MAX_BYTES}")
    return suffix if suffix in (TEXT, RECORD) else IMAGE, head + file.read()


def _captions(
    parts: dict[str, Any], mode: str, name: str, survey: Survey
) -> tuple[list[str], list[float] | None, list[str] | None, int]:
    """Captions, their scores where a .json states them (`caption` and `scores`, equally long), what the base reads in
    their place where it states `captions_base`, and how many captions are lines of a file with several. Raises
    ValueError."""
    lines = file_captions(parts.get(TEXT, b""), mode)
    record: dict[str, Any] = {}
    if RECORD in parts:
        try:
            record = json.loads(decode_text(parts[RECORD]))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no JSON: {error}") from error
        record = record if isinstance(record, dict) else {}
    stated = as_captions(record["caption"]) if "caption" in record else []
    scores, base = (as_scores(record.get("scores")) if stated else None), base_captions(record)
    if scores is not None:
        if lines:
            survey.ignored.add(".txt beside captions with scores", name)
        return stated, scores, base, 0
    captions = [caption for caption in lines + stated if caption.strip()]
    if not captions:
        raise ValueError(f"no caption: found {', '.join(part for part in parts if part != IMAGE) or 'the image alone'}")
    return captions, None, base, len(lines) if len(lines) > 1 else 0
