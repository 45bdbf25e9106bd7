"""A folder of images with `.txt` captions beside them, and CSV or JSONL manifests.

Every file seen is read, set aside with the reason in the ledger, or counted as ignored.
"""

import os
from pathlib import Path, PurePosixPath

from sanakit.data.captions import file_captions
from sanakit.data.images import HEAD, SUFFIXES
from sanakit.data.readers.sources import is_image_content, read_bytes
from sanakit.data.survey import HIDDEN_FILES, HIDDEN_FOLDERS, Survey, is_hidden, reason_of
from sanakit.data.table import ImageDataset, safe_name
from sanakit.errors import SanakitError

CAPTION_LIKE = (".caption", ".captions", ".tags", ".json")  # named where an image has no .txt


def read_folder(folder: Path, captions: str = "lines") -> ImageDataset:
    """Every image below `folder`, linked folders included; the caption is the .txt of the same stem.

    captions: `lines`, a caption a line, or `whole`, the file is one caption. Hidden files and folders are skipped.
    Raises SK0401 where there is no image, naming what was found.
    """
    dataset = ImageDataset(source=str(folder), names=[], captions=[], images=[])
    files = walk(folder, dataset)
    texts: dict[str, Path] = {}
    for name, path in files:
        if path.suffix.lower() == ".txt" and texts.setdefault(stem_of(name), path) is not path:
            dataset.survey.ignored.add(".txt that differ from another in capitals alone", name)
    beside = {stem_of(name): path.name for name, path in files if path.suffix.lower() in CAPTION_LIKE}
    used = set()
    for name, path in files:
        try:
            if path.suffix.lower() == ".txt" or not is_image(name, path, dataset.survey):
                continue
            used.add(stem_of(name))
            text = texts.get(stem_of(name))
            if text is None:
                raise ValueError(_no_caption(path, beside.get(stem_of(name))))
            lines = file_captions(read_bytes(text), captions)
            if not lines:
                raise ValueError(f"no caption: {text.name} is empty")
            dataset.add(name, lines, read_bytes(path))
            if len(lines) > 1:
                dataset.survey.lines[name] = len(lines)
        except (OSError, ValueError) as error:
            used.add(stem_of(name))
            dataset.set_aside(name, reason_of(error))
    for name, _ in files:
        if PurePosixPath(name).suffix.lower() == ".txt" and stem_of(name) not in used:
            dataset.survey.ignored.add(".txt without an image", name)
    if not dataset.names and not dataset.ledger:
        ignored = dataset.survey.ignored.text() or "nothing"
        raise SanakitError("SK0401", f"{folder} holds no image, found {ignored}")
    return dataset


def walk(folder: Path, dataset: ImageDataset) -> list[tuple[str, Path]]:
    """Every file below `folder` that is not hidden, by its name relative to it (safe_name), sorted. A linked folder is
    read where it was not read before."""
    files, seen, survey = [], set(), dataset.survey
    pending = [("", folder)]

    def refused(error: OSError) -> None:
        dataset.set_aside(os.path.relpath(str(error.filename), folder), f"folder {reason_of(error)}")

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
