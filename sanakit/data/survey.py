"""What reading a data set found beside its images: files that are no data, images that were changed, ledgers of what
was set aside."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sanakit.errors import SanakitError
from sanakit.files import cache_dir, write_aside

HIDDEN_FILES, HIDDEN_FOLDERS = "hidden files", "hidden folders"
TOLD = 6  # kinds that a line names


class Tally:
    """How often each kind of thing was found, and the name of its first."""

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[int, str]] = {}

    @classmethod
    def of(cls, kinds: dict[str, Any]) -> "Tally":
        """A tally from {kind: (count, first name)}."""
        tally = cls()
        tally.kinds = {kind: (int(count), str(first)) for kind, (count, first) in kinds.items()}
        return tally

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def add(self, kind: str, name: str) -> None:
        count, first = self.kinds.get(kind, (0, name))
        self.kinds[kind] = count + 1, first

    def update(self, other: "Tally") -> None:
        """Add what another one counted; the first names stay."""
        for kind, (count, first) in other.kinds.items():
            before, name = self.kinds.get(kind, (0, first))
            self.kinds[kind] = before + count, name

    def text(self) -> str:
        """`3 hidden files, metadata.jsonl, 4 .tar`: the commonest kinds, single files by name."""
        ranked = sorted(self.kinds.items(), key=lambda item: (-item[1][0], item[0]))
        told = []
        for kind, (count, first) in ranked:
            is_suffix = kind.startswith(".") and " " not in kind
            told.append(first if count == 1 and is_suffix else f"{count:,} {kind}")
        more = len(told) - TOLD
        return ", ".join([*told[:TOLD], *([f"{more} more kinds"] if more > 0 else [])])

    def as_dict(self) -> dict[str, dict[str, Any]]:
        return {kind: {"count": count, "first": first} for kind, (count, first) in self.kinds.items()}


@dataclass(kw_only=True)
class Survey:
    """ignored: files that are no images and no captions, by kind. changed: images that were not read as they are, by
    what was done; of `decoded` images where that is not 0: a sample. sizes: (width, height) of every image as it is
    shown, where a data set without an index was screened."""

    ignored: Tally = field(default_factory=Tally)
    changed: Tally = field(default_factory=Tally)
    decoded: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def ignore(self, name: str) -> None:
        """Count a file that is not read, by its suffix."""
        last = name.rpartition("/")[2]
        stem, dot, suffix = last.rpartition(".")
        self.ignored.add(f".{suffix.lower()}" if dot and stem else "files without a suffix", last)


def is_hidden(name: str) -> bool:
    """Whether a part of a relative path is one that systems and programs put there for themselves."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/") if part not in ("", ".", ".."))


def reason_of(error: Exception) -> str:
    """An error as the ledger states it."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def slug_of(source: str) -> str:
    """A data set's name as a file name."""
    slug = re.sub(r"[^a-z0-9]+", "-", source.lower()).strip("-")[-40:].strip("-")
    return f"{slug}-{hashlib.sha256(source.encode(errors='replace')).hexdigest()[:8]}"


def write_ledger(ledger: list[dict[str, str]], source: str, path: Path | None = None) -> Path:
    """Write what was set aside, a JSON object a line; without a path into the cache's folder `ledgers`. Raises
    SK0903."""
    if path is None:
        path = cache_dir() / "ledgers" / f"{slug_of(source)}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, "".join(json.dumps(row) + "\n" for row in ledger))
    except OSError as error:
        raise SanakitError("SK0903", f"{path}: {error}") from error
    return path
