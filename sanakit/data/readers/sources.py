"""Files and addresses that readers open, and what their first bytes say."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from sanakit.data.images import DECODERS, FOREIGN, MAX_PIXELS, found_format
from sanakit.data.survey import Survey
from sanakit.errors import SanakitError

MAX_BYTES = 4 * MAX_PIXELS


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
        return fsspec.open(source, "rb").open()
    except ImportError as error:
        raise SanakitError("SK0901", f"{source}: {error}", fix="Install the package that the message names.") from error
    except ValueError as error:  # a protocol that nobody knows
        raise SanakitError("SK0401", f"{source}: {error}") from error


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
