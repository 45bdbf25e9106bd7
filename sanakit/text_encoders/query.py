"""`?key=value&...` behind a text encoder's name: fields of its TextSpec that a user may change."""

import operator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

from sanakit.contracts import TextSpec
from sanakit.errors import SanakitError, did_you_mean
from sanakit.text_encoders.base import TextEncoder
from sanakit.text_encoders.gemma import INSTRUCTION

AUTO = "layer=auto"  # the layer that says most of the base's caption features


def with_layer(name: str, layer: int | str | None) -> str:
    """The name with `layer=auto` replaced by a layer, or with None left out; any other name as it is."""
    plain, _, query = name.partition("?")
    parts = query.split("&")
    if AUTO not in parts:
        return name
    parts = [p if p != AUTO else f"layer={layer}" for p in parts if p != AUTO or layer is not None]
    return "?".join([plain, "&".join(parts)]) if parts else plain


def changed_spec(encoder: TextEncoder, query: str) -> TextSpec:
    """The encoder's record with the fields of `key=value&...` replaced. Raises SK0306."""
    changes: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        require_policy(encoder, key, f"?{key}={text}")
        try:
            changes[key] = _parsed(key, text, getattr(encoder.spec, key))
        except ValueError as error:
            raise SanakitError("SK0306", f"?{key}={text}: {error}") from error
    if not changes:
        raise SanakitError("SK0306", f"?{query} is not key=value")
    return with_fields(encoder, changes)


def require_policy(encoder: TextEncoder, key: str, said: str) -> None:
    """Raises SK0306 for a field that the encoder's class does not let one change."""
    if key not in encoder.policies:
        known = ", ".join(encoder.policies)
        raise SanakitError("SK0306", f"{said}{did_you_mean(key, list(encoder.policies))}; open to change: {known}")


def with_fields(encoder: TextEncoder, changes: dict[str, Any]) -> TextSpec:
    """The encoder's record with these fields replaced; a value means what it means behind `?key=`. Raises SK0306."""
    fields: dict[str, Any] = {}
    for key, value in changes.items():
        require_policy(encoder, key, f"{key}={value!r:.40}")
        if f"{key}={value}" == AUTO:
            raise SanakitError(
                "SK0306", f"?{AUTO} is measured against a base: swap-text-encoder, validate and train know it"
            )
        try:
            fields[key] = _checked(key, value, getattr(encoder.spec, key))
        except ValueError as error:
            raise SanakitError("SK0306", f"{key}={value!r:.40}: {error}") from error
    try:
        return replace(encoder.spec, **fields)
    except ValueError as error:
        raise SanakitError("SK0306", str(error)) from error


def _parsed(key: str, text: str, old: Any) -> Any:
    """A query's text as the type of its field; a layer is a text or a number, which `_checked` tells."""
    if isinstance(old, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError("expected true or false")
        return text.lower() == "true"
    return int(text) if isinstance(old, int) and key != "layer" else text


def _checked(key: str, value: Any, old: Any) -> Any:
    """The value as the field holds it. Raises ValueError for a value of another type."""
    if key == "layer":
        is_name = isinstance(value, str) and not value.removeprefix("-").isdecimal()
        return value if is_name else _whole(int(value) if isinstance(value, str) else value)
    if isinstance(old, bool):
        if not isinstance(value, bool):
            raise ValueError("expected True or False")
        return value
    if isinstance(old, int):
        return _whole(value)
    if not isinstance(value, str):
        raise ValueError("expected a text")
    return INSTRUCTION if key == "instruction" and value == "sana" else value


def _whole(value: Any) -> int:
    """A whole number of Python, numpy or a tensor. Raises ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError("expected a whole number")
    return number
