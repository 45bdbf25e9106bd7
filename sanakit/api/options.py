"""Options of the public functions, checked before anything is computed: every error is SK0104 and names the option."""

import math
import operator
from collections.abc import Sequence
from typing import Any

from sanakit.errors import SanakitError
from sanakit.limits import LARGEST_COUNT, LARGEST_SEED


def as_count(label: str, value: Any, least: int = 1, most: int = LARGEST_COUNT) -> int:
    """A whole number from `least` to `most`: of Python, numpy or a tensor."""
    expected = f"{label} is {value!r:.40}, expected a whole number of {least} or more"
    try:
        count = operator.index(value)
    except TypeError as error:
        raise SanakitError("SK0104", expected, fix=f"Give {label}=int(...).") from error
    if isinstance(value, bool) or count < least:
        raise SanakitError("SK0104", expected, fix=f"Take {least} or more.")
    if count > most:
        raise SanakitError("SK0104", f"{expected}, at most {most:,}", fix=f"Take {most:,} or less.")
    return count


def as_seed(value: Any) -> int:
    """A seed that PyTorch's generators take."""
    return as_count("seed", value, 0, LARGEST_SEED)


def as_number(label: str, value: Any, *, above: float = -math.inf, below: float = math.inf) -> float:
    """A finite number between `above` and `below`, both excluded."""
    bounds = [f"above {above:g}"] * math.isfinite(above) + [f"below {below:g}"] * math.isfinite(below)
    expected = f"{label} is {value!r:.40}, expected a number {' and '.join(bounds)}".rstrip()
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        number = math.nan
    if not above < number < below:
        raise SanakitError("SK0104", expected, fix=f"Give {label}= one such number.")
    return number


def as_callback(label: str, value: Any) -> Any:
    """A function, or None."""
    if value is not None and not callable(value):
        fix = f"Give {label}=print, or a function of (label, done, total)."
        raise SanakitError("SK0104", f"{label} is {value!r:.40}, expected a function", fix=fix)
    return value


def as_name(label: str, value: Any) -> str:
    """One text."""
    if not isinstance(value, str):
        raise SanakitError("SK0104", f"{label} is a {type(value).__name__}, expected a name", fix="Give one name.")
    return value


def as_names(label: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """One name, or several in a list; a text is one name, never its letters."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence | set | frozenset):
        raise SanakitError(
            "SK0104",
            f"{label} is a {type(value).__name__}, expected names",
            fix=f"Give {label}=[...], a list of texts.",
        )
    return tuple(as_name(f"one of {label}", name) for name in value)
