"""What the sections of the configuration are made of: the base class, names that are not empty, bounded numbers."""

from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from sanakit.files import is_empty
from sanakit.limits import LARGEST_COUNT


class Section(BaseModel):
    """Frozen; unknown keys, numbers that are not finite and booleans in the place of numbers are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML 1.1 reads a bare `off` as false: where a field has the choice `off`, that is what was meant. Elsewhere a
        boolean is no number, as which pydantic would take it."""
        types = _types(cls.model_fields[str(info.field_name)].annotation)
        if value is False and "off" in types:
            return "off"
        if _has_boolean(value) and bool not in types and not types.isdisjoint((int, float)):
            raise ValueError("expected a number")
        return value


def whole(default: Any, least: int = 1, most: int = LARGEST_COUNT) -> Any:
    """A field of whole numbers from `least` to `most`."""
    return Field(default=default, ge=least, le=most)


def _not_empty(name: str) -> str:
    if is_empty(name):
        raise ValueError("expected a name")
    return name


Name = Annotated[str, AfterValidator(_not_empty)]


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that holds a key twice, of which YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and keys.index((key.tag, key.value)) < number:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r:.60} is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """The value of a YAML text. Raises yaml.YAMLError, ValueError or RecursionError."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def merged_values(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Nested values with those of options, section by section; `make_config` refuses what is no section."""
    merged = dict(values)
    for key, value in given.items():
        section = merged.get(key)
        if isinstance(value, dict) and section is not None:
            value = section | value if isinstance(section, dict) else section
        merged[key] = value
    return merged


def _types(annotation: Any) -> set[Any]:
    """The types and literal values that an annotation consists of."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _types(arguments[0])
    return {one for argument in arguments for one in _types(argument)} if arguments else {annotation}


def _has_boolean(value: Any) -> bool:
    if isinstance(value, dict):
        return any(isinstance(item, bool) for item in value.values())
    return any(isinstance(item, bool) for item in (value if isinstance(value, list | tuple) else [value]))
