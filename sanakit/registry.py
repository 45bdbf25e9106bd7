"""One generic registry: a package scan for our own files, entry points for everybody else's.

Listing never imports a component. The facts shown by `sanakit ls` are the literal arguments of the
`@REGISTRY.register(...)` decorator, or of the rows of a `REGISTRY.table(...)`, read from the source with `ast`; the
module is imported only when the component is asked for.
"""

import ast
import importlib
import importlib.metadata
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeGuard, TypeVar

from sanakit.errors import SanakitError, did_you_mean
from sanakit.tracebacks import UNKNOWN, stops, told

T = TypeVar("T")
REPOSITORY = r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:[\w./-]+)?"  # of the model hub, with revision and subfolder
FACTS = ("title", "licence", "embedded")  # keywords of `register` and `row` that a listing shows
BUILTIN = "builtin"  # the origin of what comes with sanakit
PACKAGES = {  # every kind of `sanakit ls`, and the package whose files add to it
    "vaes": "sanakit.vaes",
    "text-encoders": "sanakit.text_encoders",
    "adapters": "sanakit.adapters",
    "drift": "sanakit.drift.statistics",
    "gates": "sanakit.checks",
    "datasets": "sanakit.data",
    "strategies": "sanakit.strategies",
    "metrics": "sanakit.evaluation.metrics",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of `sanakit ls`. `facts` are the further literal arguments of the decorator."""

    kind: str
    name: str
    title: str
    origin: str  # "builtin" or the plugin's distribution
    module: str
    embedded: bool = False
    licence: str = ""
    error: str | None = None
    attribute: str = ""
    claimed_by: tuple[str, ...] = ()  # where a name is used twice: every origin that claims it

    def as_dict(self) -> dict[str, Any]:
        keys = ("kind", "name", "title", "origin", "embedded", "licence", "error")
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A component that differs from its family's class in attributes alone."""

    base: Any
    name: str
    title: str
    licence: str = ""
    embedded: bool = False
    attributes: dict[str, Any]


def row(base: Any, name: str, *, title: str, licence: str = "", embedded: bool = False, **attributes: Any) -> Row:
    """A row of `Registry.table`: the arguments of `register`, and what the class sets beside them."""
    return Row(base=base, name=name, title=title, licence=licence, embedded=embedded, attributes=attributes)


class Registry(Generic[T]):
    """Names to classes or functions of one kind.

    kind: what `sanakit ls KIND` says, a key of PACKAGES. package: dotted package that is scanned, one file a component.
    group: entry-point group for third-party packages, `sanakit.<kind>` with underscores.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.package = PACKAGES[kind]
        self.group = "sanakit." + kind.replace("-", "_")
        self._objects: dict[str, T] = {}
        self._listing: dict[str, Entry] | None = None

    def register(self, name: str, *, title: str, licence: str = "", embedded: bool = False) -> Callable[[T], T]:
        """Class decorator. Arguments must be literals: `sanakit ls` reads them without importing the file."""

        def add(item: T) -> T:
            known = self._objects.get(name)
            if known is not None and _identity(known) != _identity(item):
                raise SanakitError("SK0102", f"{self.kind} {name!r} is both {_identity(known)} and {_identity(item)}")
            self._objects[name] = item
            item.name = name  # type: ignore[attr-defined]
            item.title = title  # type: ignore[attr-defined]
            return item

        return add

    def table(self, module: dict[str, Any], rows: dict[str, Row]) -> None:
        """Register a family's members that repeat one shape, a row each. module: the `globals()` of the family's file,
        which holds their classes afterwards. rows: by the name of the class."""
        for class_name, member in rows.items():
            attributes = {"__module__": module["__name__"], "__doc__": member.title, **member.attributes}
            made: Any = type(class_name, (member.base,), attributes)
            told = self.register(member.name, title=member.title, licence=member.licence, embedded=member.embedded)
            module[class_name] = told(made)

    def entries(self) -> dict[str, Entry]:
        """Every name with its facts, own components first, without importing any of them."""
        if self._listing is None:
            listing: dict[str, Entry] = {}
            for entry in [*self._scan_package(), *self._scan_entry_points()]:
                first = listing.setdefault(entry.name, entry)
                if first is not entry:
                    origins = (*(first.claimed_by or (first.origin,)), entry.origin)
                    message = f"name used twice: {' and '.join(origins)}"
                    listing[entry.name] = replace(first, error=message, claimed_by=origins)
            self._listing = listing
        return self._listing

    def names(self) -> list[str]:
        return list(self.entries())

    def get(self, name: str) -> T:
        """The registered object. Raises SK0101 (unknown), SK0102 (twice) or SK0103 (import fails)."""
        entry = self.entries().get(name)
        if entry is None:
            if name in self._objects:  # registered by hand in this process, as tests and notebooks do
                return self._objects[name]
            raise SanakitError(
                "SK0101", f"no {self.kind} named {name!r}{did_you_mean(name, self.names())}; known: {self._known()}"
            )
        if entry.claimed_by:
            raise SanakitError("SK0102", f"{self.kind} {name!r}: {entry.error}", fix=uninstall(entry))
        if name not in self._objects:
            self._import(entry)
        return self._objects[name]

    def blame(self, name: str, error: BaseException) -> tuple[str, str]:
        """Code and text of what a registered object raised: whose it is, the error in one line,
        the traceback's file."""
        if isinstance(error, SanakitError):
            return error.code, error.found
        entry = self.entries().get(name)
        origin = entry.origin if entry else BUILTIN
        return ("SK0999", told(error)) if origin == BUILTIN else ("SK0114", f"{origin}: {told(error)}")

    def _import(self, entry: Entry) -> None:
        try:
            module = importlib.import_module(entry.module)
            if entry.name not in self._objects:
                self._objects[entry.name] = getattr(module, entry.attribute)
        except SanakitError:
            raise
        except BaseException as error:  # a plugin may fail in any way; it is named, not passed on bare
            if stops(error):
                raise
            message = f"{self.kind} {entry.name!r} of {entry.origin}: {type(error).__name__}: {error}"
            raise SanakitError("SK0103", message) from error

    def _known(self) -> str:
        return ", ".join(self.names()) or "none"

    def _scan_package(self) -> list[Entry]:
        entries = []
        for folder in self._folders():
            for path in sorted(folder.glob("*.py")):
                if path.stem not in ("__init__", "base"):
                    entries += self._read(path, f"{self.package}.{path.stem}", origin=BUILTIN)
        return entries

    def _folders(self) -> list[Path]:
        """Where the package's files lie; it is not imported for it."""
        if self.package in sys.modules:
            return [Path(folder) for folder in sys.modules[self.package].__path__]
        return [Path(__file__).parent.joinpath(*self.package.split(".")[1:])]

    def _scan_entry_points(self) -> list[Entry]:
        entries = []
        for point in importlib.metadata.entry_points(group=self.group):
            origin = (point.dist.name if point.dist else None) or UNKNOWN
            row = Entry(kind=self.kind, name=point.name, title=point.value, origin=origin, module="")
            try:  # whatever is wrong with a plugin is a row of the list
                row = replace(row, module=point.module, attribute=point.attr)
                path = _find_source(point)
                registered = [e for e in self._read(path, point.module, origin=origin) if e.name == point.name]
                row = replace(registered[0], attribute=point.attr) if registered else row
            except Exception as error:
                row = replace(row, error=f"{type(error).__name__}: {error}")
            entries.append(row)
        return entries

    def _read(self, path: Path, module: str, *, origin: str) -> list[Entry]:
        """An entry for every `@X.register("name", title=...)` and every row of an `X.table(...)` of a source file."""
        calls: list[tuple[str, ast.Call, int]] = []  # class or function, the call that tells, place of the name in it
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                calls += [(node.name, call, 0) for call in node.decorator_list if _is_method(call, "register")]
            elif _is_method(node, "table") and len(node.args) == 2 and isinstance(node.args[1], ast.Dict):
                pairs = zip(node.args[1].keys, node.args[1].values, strict=True)
                calls += [(ast.literal_eval(key), call, 1) for key, call in pairs if isinstance(call, ast.Call) and key]
        entries = []
        for attribute, call, place in sorted(calls, key=lambda told: told[1].lineno):
            facts = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in FACTS}
            name = ast.literal_eval(call.args[place])
            entries.append(Entry(kind=self.kind, name=name, origin=origin, module=module, attribute=attribute, **facts))
        return entries


def _is_method(node: ast.AST, name: str) -> TypeGuard[ast.Call]:
    """Whether a node calls a method of this name with an argument."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    return node.func.attr == name and bool(node.args)


def uninstall(entry: Entry) -> str:
    """What mends a broken plugin, by the name of its real distribution; for a name used twice,
    of those that claim it."""
    others = [origin for origin in dict.fromkeys(entry.claimed_by or (entry.origin,)) if origin != BUILTIN]
    known = [f"pip uninstall {origin}" for origin in others if origin != UNKNOWN]
    return " or ".join(known) or f"remove the package that names {entry.module or entry.title} in its entry points"


def _identity(item: object) -> str:
    return f"{getattr(item, '__module__', '?')}.{getattr(item, '__qualname__', repr(item))}"


def _find_source(point: importlib.metadata.EntryPoint) -> Path:
    """The source file of an entry point's module, found without importing it or its package."""
    relative = Path(*point.module.split("."))
    roots = [str(point.dist.locate_file(""))] if point.dist else []
    for root in [*roots, *sys.path]:
        for candidate in (Path(root) / relative.with_suffix(".py"), Path(root) / relative / "__init__.py"):
            if candidate.is_file():
                return candidate
    raise OSError(f"module {point.module} is not installed")


def with_scheme(name: str) -> str | None:
    """How a name that is none is written where it reads as a path or a repository of the model hub; else None."""
    try:
        is_path = name.startswith(("/", ".", "~")) or Path(name).exists()
    except OSError:  # a name of thousands of letters
        is_path = False
    if not is_path and re.fullmatch(REPOSITORY, name):
        return f"path:{name}, or hub:{name} for a repository of the model hub"
    return f"path:{name}" if is_path or "/" in name else None
