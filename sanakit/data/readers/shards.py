"""WebDataset tar shards, on disk or behind an address (`s3://`, `gs://`, `https://` ...) by fsspec and its packages."""

import json
import tarfile
from collections import Counter, defaultdict
from pathlib import PurePosixPath

from sanakit.data.captions import as_captions, as_scores, decode_text, file_captions
from sanakit.data.images import HEAD, SUFFIXES
from sanakit.data.readers.sources import MAX_BYTES, expand, is_image_content, open_source
from sanakit.data.survey import HIDDEN_FILES, Survey, is_hidden, reason_of
from sanakit.data.table import ImageDataset, safe_name
from sanakit.errors import SanakitError

IMAGE, TEXT, RECORD = "image", ".txt", ".json"  # the parts of a sample


def read_shards(pattern: str, captions: str = "lines") -> ImageDataset:
    """WebDataset shards: `DIR/{00000..00009}.tar` (inclusive) or one `.tar`; members of one stem are one sample.

    Read in memory, in order, with our own decoders: an image, `.txt` (captions: a caption a line, or with `whole` one)
    and `.json` (`caption`, a string or a list, and perhaps `scores`). Nothing is unpickled, unpacked to disk or run. A
    second sample of one stem is set aside; hidden members and those of any other kind are counted as ignored.
    """
    dataset = ImageDataset(source=pattern, names=[], captions=[], images=[])
    for source in expand(pattern):
        shard = PurePosixPath(source).name
        try:
            with open_source(source) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                samples = _read_members(tar, shard, dataset)
        except (tarfile.TarError, OSError) as error:
            raise SanakitError("SK0401", f"shard {source} cannot be read: {error}") from error
        for stem, parts in samples.items():
            name = f"{shard}/{stem}"
            try:
                if IMAGE not in parts:
                    raise ValueError(f"no image: found {', '.join(parts)}")
                texts, scores = _captions(parts, captions, name, dataset.survey)
                dataset.add(name, texts, parts[IMAGE], scores)
            except ValueError as error:
                dataset.set_aside(name, reason_of(error))
    return dataset


def _read_members(tar: tarfile.TarFile, shard: str, dataset: ImageDataset) -> dict[str, dict[str, bytes]]:
    """The parts of every sample by stem; what is not kept goes to the ledger or is counted."""
    samples: dict[str, dict[str, bytes]] = {}
    again: dict[str, Counter[str]] = defaultdict(Counter)  # how often each part of a stem came again
    for member in tar:
        member.name = safe_name(member.name)
        stem, dot, suffix = member.name.rpartition(".")
        if member.isdir():
            continue
        if is_hidden(member.name):
            dataset.survey.ignored.add(HIDDEN_FILES, member.name)
            continue
        try:
            part, data = _read_member(tar, member, dataset.survey)
        except ValueError as error:
            dataset.set_aside(f"{shard}/{member.name}", reason_of(error))
            continue
        if not part:
            continue
        stem = stem if dot and "/" not in suffix else member.name
        sample = samples.setdefault(stem, {})
        if part not in sample:
            sample[part] = data
            continue
        before = max(again[stem].values(), default=0)
        again[stem][part] += 1
        if again[stem][part] > before:
            dataset.set_aside(f"{shard}/{stem}", f"second sample of this key: {member.name} came before")
    return samples


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, survey: Survey) -> tuple[str, bytes]:
    """Which part of a sample a member is, and its bytes; an empty name for what is counted as ignored. Raises
    ValueError for what is set aside."""
    suffix = PurePosixPath(member.name).suffix.lower()
    file = tar.extractfile(member) if member.isreg() else None  # a link in a stream cannot be followed
    if file is None:
        survey.ignored.add("links and devices", member.name)
        return "", b""
    known = suffix in (*SUFFIXES, TEXT, RECORD)
    head = b"" if known else file.read(HEAD)
    if not known and not is_image_content(member.name, head, survey):
        return "", b""
    if member.size > MAX_BYTES:
        raise ValueError(f"too large: {member.size} bytes, cap {MAX_BYTES}")
    return suffix if suffix in (TEXT, RECORD) else IMAGE, head + file.read()


def _captions(parts: dict[str, bytes], mode: str, name: str, survey: Survey) -> tuple[list[str], list[float] | None]:
    """Captions, and their scores where a .json states them (`caption` and `scores`, equally long). Raises
    ValueError."""
    lines = file_captions(parts.get(TEXT, b""), mode)
    record, scores = {}, None
    if RECORD in parts:
        try:
            record = json.loads(decode_text(parts[RECORD]))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no JSON: {error}") from error
        record = record if isinstance(record, dict) else {}
    stated = as_captions(record["caption"]) if "caption" in record else []
    scores = as_scores(record.get("scores")) if stated else None
    if scores is not None:
        if lines:
            survey.ignored.add(".txt beside captions with scores", name)
        return stated, scores
    if len(lines) > 1:
        survey.lines[name] = len(lines)
    captions = [caption for caption in lines + stated if caption.strip()]
    if not captions:
        raise ValueError(f"no caption: found {', '.join(part for part in parts if part != IMAGE) or 'the image alone'}")
    return captions, None
