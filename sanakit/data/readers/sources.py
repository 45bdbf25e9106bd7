"""Files and addresses that readers open, and what their first bytes say."""

import glob
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from sanakit.data.images import DECODERS, FOREIGN, MAX_PIXELS, SUFFIXES, found_format
from sanakit.data.part import Plan, plan_files, stamp_of
from sanakit.data.places import is_address, remember_address, whole_address
from sanakit.data.survey import Survey, is_hidden
from sanakit.errors import SanakitError
from sanakit.files import hide_secrets, without_secrets

MAX_BYTES = 4 * MAX_PIXELS
SHARDS = (".tar.gz", ".tgz", ".tar", ".parquet")


def expand(pattern: str) -> list[str]:
    """The sources that `{00000..00009}` stands for, both ends included. Raises SK0401 for a range that runs
    backwards."""
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not braces:
        return [pattern]
    first, last = braces[1], braces[2]
    if int(last) < int(first):
        raise SanakitError(
            "SK0401", f"{pattern}: the range {braces[0]} runs backwards", fix=f"Write {{{last}..{first}}}."
        )
    numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return [pattern[: braces.start()] + n + pattern[braces.end() :] for n in numbers]


def plan_sources(reader: str, pattern: str, files: list[str] | None = None, **options: Any) -> Plan:
    """A part for every file or address that the pattern stands for, or for `files`. Raises SK0401 for one that is not
    there."""
    sources = [remember_address(absolute(source)) for source in (files or expand(pattern))]
    plan = Plan(source=without_secrets(pattern))
    for source, label in zip(sources, labels_of(sources), strict=True):
        payload = {"source": source, "label": label, **options}
        plan.parts.append(plan_files(reader, payload, [stamp_of_source(source)]))
    return plan


def shards_below(folder: Path) -> tuple[str, list[str]]:
    """The suffix of the shards or tables that a folder holds, and their paths, sorted; empty where it holds an image
    too, or shards of two kinds."""
    by_suffix: dict[str, list[str]] = {}
    for root, names, files in os.walk(folder):
        names[:] = [name for name in names if not is_hidden(name)]
        for name in files:
            if Path(name).suffix.lower() in SUFFIXES:
                return "", []
            if not is_hidden(name) and (suffix := shard_suffix(name)):
                by_suffix.setdefault(suffix, []).append(str(Path(root) / name))
    if len(by_suffix) != 1:
        return "", []
    suffix, paths = by_suffix.popitem()
    return suffix, sorted(paths)


def matches(pattern: str) -> list[str]:
    """The files or addresses that a glob stands for, sorted; empty for a text that is none, or a path that is there."""
    if not any(sign in without_secrets(pattern) for sign in "*?["):
        return []
    if is_address(pattern):
        import fsspec

        system, path = fsspec.core.url_to_fs(pattern)
        return [system.unstrip_protocol(match) for match in sorted(system.glob(path))]
    path = Path(pattern).expanduser()
    return [] if path.exists() else sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  it may be absolute


def shard_suffix(name: str) -> str:
    """`.tar`, `.tar.gz`, `.tgz` or `.parquet` in small letters; empty for any other name."""
    return next((suffix for suffix in SHARDS if name.lower().endswith(suffix)), "")


def absolute(source: str) -> str:
    """A path from the root; an address as it is."""
    return source if is_address(source) or source.startswith("pipe:") else str(Path(source).expanduser().absolute())


def labels_of(sources: list[str]) -> list[str]:
    """What images of each source are named by: its last part, or its path below what all have in common where two
    sources would have the same."""
    last = [source.rpartition("/")[2] for source in sources]
    if len(set(last)) == len(last) or len(set(sources)) == 1:
        return last
    parts = [source.split("/") for source in sources]
    while len({names[0] for names in parts}) == 1:
        parts = [names[1:] for names in parts]
    return ["/".join(names) for names in parts]


def stamp_of_source(source: str) -> list[Any]:
    """[path, bytes, time] of a file; of an address its bytes and whatever the server says of its version."""
    if not is_address(source):
        with open_source(source):
            return stamp_of(Path(source))
    with open_source(source) as file:
        info = file.fs.info(file.path) if hasattr(file, "fs") else {}
    version = [str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(key)]
    return [source, int(info.get("size") or 0), version]


def open_source(source: str) -> Any:
    """A file or an address for reading, in order. Raises SK0401 for a pipe, SK0901 for an address whose package is
    missing."""
    if source.startswith("pipe:"):
        raise SanakitError("SK0401", f"{source}: commands are not run")
    if "://" not in source:
        path = Path(source).expanduser()
        if not path.is_file():
            raise SanakitError("SK0401", f"shard {path} does not exist")
        return path.open("rb")
    import fsspec

    try:
        return fsspec.open(whole_address(source), "rb").open()
    except ImportError as error:
        raise SanakitError("SK0901", f"{source}: {error}", fix="Install the package that the message names.") from error
    except (ValueError, OSError) as error:  # a protocol that nobody knows, an address where nothing lies
        said = hide_secrets(str(error), whole_address(source))
        raise SanakitError("SK0401", f"{source} cannot be opened: {type(error).__name__}: {said}") from error


def is_image_content(name: str, head: bytes, survey: Survey) -> bool:
    """The same for a file of a suffix that says nothing, by its first bytes."""
    image_format = found_format(head)
    if image_format in FOREIGN:
        raise ValueError(f"format {image_format} is not read")
    if image_format == "TIFF":  # camera raw files begin in this way: what opens is a preview
        raise ValueError(f"format {PurePosixPath(name).suffix or 'without suffix'} with TIFF inside is not read")
    if image_format in DECODERS:
        return True
    survey.ignore(name)
    return False


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises ValueError for one that is missing or too large, OSError for one that cannot be
    read."""
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
