"""A part of a data set while it is read into an index: a shard, a table, or some files of a folder or manifest.

What is cheap is checked here: the header, the size in pixels and bytes, captions and scores. Whether an image decodes
is told by a sample of the whole data set (data/screen.py).
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from sanakit.data.images import DECODERS, MAX_PIXELS, header_size, row_content
from sanakit.data.indexed import SCHEMA
from sanakit.data.names import evaluation_order, is_held_out, safe_name
from sanakit.data.places import Place
from sanakit.data.survey import Survey, Tally, reason_of

VERSION = 2  # of what a part holds; another one is indexed anew


@dataclass(frozen=True, kw_only=True)
class PartPlan:
    """reader: a name of sanakit.data.readers. payload: what it is given, JSON-able. stamp: path, size and time (or
    ETag) of every file that it reads: the part is read anew when one of them changes. newest: the largest of the
    times, in ns."""

    reader: str
    payload: Any
    stamp: list[Any]
    nbytes: int = 0
    newest: int = 0

    @property
    def key(self) -> str:
        text = json.dumps([VERSION, MAX_PIXELS, DECODERS, self.reader, self.payload, self.stamp])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(kw_only=True)
class Plan:
    """source: the name it was asked for by. parts: in the order of the data set. ledger, survey: what finding them
    told."""

    source: str
    parts: list[PartPlan] = field(default_factory=list)
    ledger: list[dict[str, str]] = field(default_factory=list)
    survey: Survey = field(default_factory=Survey)

    def set_aside(self, name: str, reason: str) -> None:
        self.ledger.append({"name": safe_name(name), "reason": safe_name(reason)})


def stamp_of(path: Path) -> list[Any]:
    """[path, bytes, time in ns], zeros for a file that is not there, or that no file can be named."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return [str(path), 0, 0]
    return [str(path), status.st_size, status.st_mtime_ns]


def plan_files(reader: str, payload: Any, stamps: Sequence[list[Any]]) -> PartPlan:
    return PartPlan(
        reader=reader,
        payload=payload,
        stamp=list(stamps),
        nbytes=sum(stamp[1] for stamp in stamps),
        newest=max((stamp[2] for stamp in stamps if isinstance(stamp[2], int)), default=0),
    )


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the bytes of an image tell. problem: why it is set aside, or empty."""

    place: Place
    key: int = 0
    width: int = 0
    height: int = 0
    problem: str = ""


def examine(data: bytes, place: Place) -> ImageFacts:
    """Hash an image and read its header."""
    digested = hashlib.sha256(data)
    content = row_content(data)
    digest = digested.digest() if content is data else hashlib.sha256(content).digest()
    place = Place(place.path, place.kind, place.offset, len(data), digested.digest())
    try:
        width, height = header_size(data)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises anything on a damaged file, and the others are to be read
        return ImageFacts(place, problem=reason_of(error))
    return ImageFacts(place, int.from_bytes(digest[:8], "big", signed=True), width, height)


@dataclass(kw_only=True)
class Part:
    """Rows of the index, and what was set aside or ignored on the way."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in SCHEMA.names})
    ledger: list[dict[str, str]] = field(default_factory=list)
    survey: Survey = field(default_factory=Survey)

    def add(
        self,
        name: str,
        captions: list[str],
        image: ImageFacts,
        scores: list[float] | None = None,
        *,
        base: list[str] | None = None,
        lines: int = 0,
    ) -> None:
        """One image more; captions without words go, with their scores and the base's. base: what the base reads in
        their place. What cannot be used is set aside."""
        name = safe_name(name)
        if problem := image_problem(self.columns, captions, base, scores) or image.problem:
            self.set_aside(name, problem)
            return
        kept = with_words(captions, base)
        row = {
            "name": name,
            "captions": [captions[number].strip() for number in kept],
            "captions_base": [base[number].strip() for number in kept] if base is not None else None,
            "scores": [float(scores[number]) for number in kept] if scores else None,
            "path": os.fsencode(image.place.path),
            "kind": int(image.place.kind),
            "offset": image.place.offset,
            "nbytes": image.place.nbytes,
            "sha256": image.place.sha256,
            "key": image.key,
            "width": image.width,
            "height": image.height,
            "lines": lines,
            "order": int.from_bytes(evaluation_order(name)[:8]),
            "held_out": is_held_out(name),
        }
        for column, value in row.items():
            self.columns[column].append(value)

    def set_aside(self, name: str, reason: str) -> None:
        self.ledger.append({"name": safe_name(name), "reason": safe_name(reason)})

    def table(self) -> pa.Table:
        told = {"ledger": self.ledger, "ignored": self.survey.ignored.kinds, "changed": self.survey.changed.kinds}
        arrays = [pa.array(self.columns[field.name], field.type) for field in SCHEMA]
        return pa.table(arrays, schema=SCHEMA.with_metadata({"sanakit": json.dumps(told)}))


def with_words(captions: list[str], base: list[str] | None) -> list[int]:
    """Which captions have words, and so has what the base reads in their place."""
    sides = zip(captions, captions if base is None else base, strict=True)
    return [number for number, pair in enumerate(sides) if all(text.strip() for text in pair)]


def image_problem(
    others: dict[str, list[Any]], captions: list[str], base: list[str] | None, scores: list[float] | None
) -> str:
    """Why an image cannot join others, of which the first says whether images have scores and captions of the base;
    empty where it can. others: columns `name`, `scores` and `captions_base`, an empty list for one that no image has.
    """
    if broken := next((caption for caption in (*captions, *(base or ())) if safe_name(caption) != caption), None):
        return f"a caption is not valid Unicode: {safe_name(broken)[:60]!r}"
    for what, values in (("scores", scores), ("captions_base", base)):
        if values and len(values) != len(captions):
            return f"{len(values)} {what} of {len(captions)} captions"
        if others["name"] and bool(values) != (bool(others[what]) and others[what][0] is not None):
            return f"has {what}" if values else f"has no {what}, others have"
    return "" if with_words(captions, base) else "no caption"


def told_of(table: pa.Table) -> tuple[list[dict[str, str]], Survey]:
    """Ledger and survey that a part's table carries."""
    told = json.loads(table.schema.metadata[b"sanakit"])
    survey = Survey(ignored=Tally.of(told["ignored"]), changed=Tally.of(told["changed"]))
    return told["ledger"], survey
