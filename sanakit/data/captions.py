"""Captions and scores as files state them: text is read as text, and what is no text is refused, never spelled out.

Every function raises ValueError with the reason that goes to the ledger.
"""

import codecs
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

MODES = ("lines", "whole")
UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
BASE_KEYS = ("captions_base", "caption_base")  # columns of what the base reads in the place of the captions
KINDS = {dict: "an object", bool: "a truth value", int: "a number", float: "a number", list: "a list", bytes: "bytes"}


def decode_text(data: bytes, errors: str = "strict") -> str:
    """UTF-8 with or without byte order mark, or UTF-16 with one. errors: as for bytes.decode, of UTF-8 alone."""
    if data.startswith(UTF32):
        raise ValueError("text in UTF-32: expected UTF-8, or UTF-16 with a byte order mark")
    try:
        text = data.decode("utf-16") if data.startswith(UTF16) else data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise ValueError(f"text that is not {error.encoding}: {byte}; save it as UTF-8") from error
    if "\0" in text:
        raise ValueError("text with zero bytes: UTF-16 without a byte order mark, or no text; save it as UTF-8")
    return text


def split_lines(text: str) -> list[str]:
    """Lines with words, stripped; broken at CR and LF alone, as rarer separators belong to a caption."""
    lines = (line.strip().strip("\ufeff").strip() for line in re.split(r"\r\n|\r|\n", text))
    return [line for line in lines if line]


def file_captions(data: bytes, mode: str) -> list[str]:
    """The captions of a caption file: a caption a line, or with mode `whole` all lines as one."""
    lines = split_lines(decode_text(data))
    return [" ".join(lines)] if lines and mode == "whole" else lines


def as_captions(value: Any) -> list[str]:
    """A string, or a list of strings; nothing else is a caption. ImageDataset.add refuses lone surrogates."""
    value = value.tolist() if isinstance(value, np.ndarray) else value  # a list in a table of pandas
    values = value if isinstance(value, list) else [value]
    for number, item in enumerate(values, 1):
        name = f"caption {number} of {len(values)}" if isinstance(value, list) else "caption"
        if not isinstance(item, str):
            raise ValueError(f"no text: {name} is {kind_of(item)}")
    return list(values)


def base_captions(record: Any) -> list[str] | None:
    """What the base reads in the place of a row's captions, as in another language; None where a row states nothing.
    Raises ValueError as `as_captions`, with the column's name."""
    key = next((key for key in BASE_KEYS if key in record and record[key] is not None), None)
    if key is None:
        return None
    try:
        captions = as_captions(record[key])
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    if not captions:
        raise ValueError(f"{key}: an empty list")
    return captions


def as_scores(value: Any) -> list[float] | None:
    """A finite number a caption; None where none are stated."""
    if value is None:
        return None
    value = value.tolist() if isinstance(value, np.ndarray) else value
    numbers: Sequence[Any] = value if isinstance(value, list) else [value]
    wrong = [n for n in numbers if not isinstance(n, int | float) or isinstance(n, bool) or not math.isfinite(n)]
    if not isinstance(value, list) or wrong:
        raise ValueError(f"scores is {value!r:.40}, expected a list with a finite number a caption")
    return [float(number) for number in numbers]


def kind_of(value: Any) -> str:
    """A value that is no string, in words."""
    if value is None:
        return "null"
    if isinstance(value, float) and math.isnan(value):
        return "not a number (NaN)"
    return f"{KINDS.get(type(value), type(value).__name__)} ({value!r:.30})"
