"""A folder of images with `.txt` or `.caption` files beside them, and perhaps `.base.txt` for what the base reads.

Every file seen is read, set aside with the reason in the ledger, or counted as ignored.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sanakit.data.captions import file_captions
from sanakit.data.images import HEAD, SUFFIXES
from sanakit.data.names import safe_name
from sanakit.data.part import Part, Plan, examine, plan_files, stamp_of
from sanakit.data.places import whole_file
from sanakit.data.readers.sources import is_image_content, read_bytes
from sanakit.data.survey import HIDDEN_FILES, HIDDEN_FOLDERS, Survey, is_hidden, reason_of
from sanakit.errors import SanakitError

CAPTION_FILES = (".txt", ".caption")  # the first that an image has is read
BASE_CAPTIONS = ".base"  # before the suffix of a caption file: what the base reads in the captions' place
CAPTION_LIKE = (".captions", ".tags", ".json")  # named where an image has none of them
PART_FILES = 4096  # images of a part of the index, on average


def plan_folder(folder: Path, captions: str = "lines") -> Plan:
    """Every image below `folder`, linked folders included; the caption is the .txt, or else the .caption, of the same
    stem, and what the base reads in its place the `.base.txt`, where there is one.

    captions: `lines`, a caption a line, or `whole`, the file is one caption. Hidden files and folders are skipped.
    Raises SK0401 where there is no image, naming what was found.
    """
    plan = Plan(source=str(folder))
    files = walk(folder, plan)
    texts: dict[str, Path] = {}
    for suffix in CAPTION_FILES:
        for name, path in files:
            if path.suffix.lower() == suffix and texts.setdefault(stem_of(name), path) is not path:
                same = texts[stem_of(name)].suffix.lower() == suffix
                told = "that differ from another in capitals alone" if same else f"beside {CAPTION_FILES[0]}"
                plan.survey.ignored.add(f"{suffix} {told}", name)
    beside = {stem_of(name): path.name for name, path in files if path.suffix.lower() in CAPTION_LIKE}
    used, images = set(), []
    for name, path in files:
        stem = stem_of(name)
        try:
            if path.suffix.lower() in CAPTION_FILES or not is_image(name, path, plan.survey):
                continue
            images.append((name, path, texts.get(stem), texts.get(stem + BASE_CAPTIONS)))
        except (OSError, ValueError) as error:
            plan.set_aside(name, reason_of(error))
        used |= {stem, stem + BASE_CAPTIONS}
    for name, _ in files:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in CAPTION_FILES and stem_of(name) not in used:
            plan.survey.ignored.add(f"{suffix} without an image", name)
    if not images and not plan.ledger:
        raise SanakitError("SK0401", f"{folder} holds no image, found {plan.survey.ignored.text() or 'nothing'}")
    for some in cut_by_name(images):
        stamps = [stamp_of(path) for _, *paths in some for path in paths if path]
        rows = [
            [name, *(str(path.absolute()) if path else "" for path in paths), beside.get(stem_of(name))]
            for name, *paths in some
        ]
        plan.parts.append(plan_files("folder", {"captions": captions, "rows": rows}, stamps))
    return plan


def has_caption_files(folder: Path) -> bool:
    """Whether a `.txt` below lies beside an image of its stem; a licence or a readme does not."""
    suffixes = [each for suffix in SUFFIXES for each in (suffix, suffix.upper())]
    return any(path.with_suffix(suffix).is_file() for path in folder.rglob("*.txt") for suffix in suffixes)


def fill_part(part: Part, payload: dict[str, Any]) -> None:
    """Read images and caption files of a folder: rows [name, image, caption file or empty, the base's or empty, what
    lies beside]."""
    for name, image, text, base, beside in payload["rows"]:
        try:
            if not text:
                raise ValueError(_no_caption(Path(image), beside))
            captions = file_captions(read_bytes(Path(text)), payload["captions"])
            if not captions:
                raise ValueError(f"no caption: {Path(text).name} is empty")
            of_base = file_captions(read_bytes(Path(base)), payload["captions"]) if base else None
            if of_base == []:
                raise ValueError(f"no caption: {Path(base).name} is empty")
            data = read_bytes(Path(image))
            facts = examine(data, whole_file(Path(image), len(data)))
            part.add(name, captions, facts, base=of_base, lines=len(captions) if len(captions) > 1 else 0)
        except (OSError, ValueError) as error:
            part.set_aside(name, reason_of(error))


def cut_by_name(items: Sequence[Any]) -> list[Sequence[Any]]:
    """Runs of about PART_FILES items, (name, ...) each, that end at names chosen by their hash: a file that is added or
    removed changes one run alone."""
    runs, start = [], 0
    for number, item in enumerate(items, 1):
        if int.from_bytes(hashlib.sha256(item[0].encode(errors="replace")).digest()[-4:]) % PART_FILES == 0:
            runs.append(items[start:number])
            start = number
    return [*runs, items[start:]] if start < len(items) else runs


def walk(folder: Path, plan: Plan) -> list[tuple[str, Path]]:
    """Every file below `folder` that is not hidden, by its name relative to it (safe_name), sorted. A linked folder is
    read where it was not read before."""
    files, seen, survey = [], set(), plan.survey
    pending = [("", folder)]

    def refused(error: OSError) -> None:
        plan.set_aside(os.path.relpath(str(error.filename), folder), f"folder {reason_of(error)}")

    while pending:
        prefix, start = pending.pop(0)
        for root, names, file_names in os.walk(start, onerror=refused):
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
            for name in file_names:
                if is_hidden(name):
                    survey.ignored.add(HIDDEN_FILES, inner + safe_name(name))
                else:
                    files.append((inner + safe_name(name), Path(root) / name))
    return sorted(files)


def is_image(name: str, path: Path, survey: Survey) -> bool:
    """Whether a file is an image, by its suffix or else by its first bytes; what is neither is counted as ignored.
    Raises ValueError for an image of a format that is not read."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if not path.is_file():
        survey.ignored.add("links and devices", name)
        return False
    with path.open("rb") as file:
        return is_image_content(name, file.read(HEAD), survey)


def stem_of(name: str) -> str:
    """The relative path without its last suffix: what an image and its caption share."""
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).suffix else name


def _no_caption(path: Path, beside: str | None) -> str:
    return f"no caption: {path.stem}.txt does not exist" + (f", found {beside}" if beside else "")
