"""Imports go one way: every package may use those below it only."""

import ast
from pathlib import Path

import pytest

import sanakit

ROOT = Path(sanakit.__file__).parent
LAYERS = [
    {"contracts", "errors", "hashing"},
    {"registry", "inventory", "tracebacks", "flow", "distributed", "kernels", "optimizers", "watch", "tracking"},
    {"vaes", "text_encoders", "drift", "core", "adapters", "features", "interop"},
    {"assembly"},
    {"data", "sampling"},
    {"alignment", "evaluate", "blind", "batches", "schedules", "train"},
    {"monitors", "checkpoint", "gates", "config", "run"},
    {"presets"},
    {"swap", "doctor"},
    {"estimate"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = [p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"]


SIBLINGS = {"vaes", "text_encoders", "adapters", "drift"}
LIGHT = {
    "contracts",
    "presets",
    "distributed",
    "errors",
    "registry",
    "inventory",
    "tracebacks",
    "config",
    "reporting",
    "cli",
    "doctor",
}
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "numpy", "pandas", "sklearn", "scipy", "torchmetrics"}


def modules(tree):
    """Dotted names that a syntax tree imports; `from package import name` gives both, as `name` may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported(path):
    """First-level parts of sanakit that a file imports, inside its functions too."""
    for name in modules(ast.parse(path.read_text(encoding="utf-8"))):
        package, _, rest = name.partition(".")
        part = rest.split(".")[0]
        if (
            package == "sanakit"
            and part
            and ((ROOT / part / "__init__.py").is_file() or (ROOT / f"{part}.py").is_file())
        ):
            yield part


def part_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = part_of(path)
    names = set(imported(path)) - {own}
    if own == "reporting":
        assert names <= {"contracts", "errors"}
        return
    assert own in RANK, f"{own} has no place in the layers"
    wrong = [n for n in names if RANK.get(n, -1 if n == "reporting" and own == "cli" else 99) > RANK[own]]
    assert not wrong


def test_the_foundations_import_nothing_of_sanakit():
    assert not [*imported(ROOT / "contracts.py"), *imported(ROOT / "errors.py")]


def test_siblings_do_not_import_each_other():
    for path in FILES:
        if part_of(path) in SIBLINGS:
            assert not (set(imported(path)) & SIBLINGS) - {part_of(path)}, path


@pytest.mark.parametrize("path", [p for p in FILES if part_of(p) in LIGHT], ids=lambda p: str(p.relative_to(ROOT)))
def test_light_modules_import_nothing_heavy_when_they_are_imported(path):
    """At the top of a file only: inside a function a heavy import is the point."""
    top = ast.parse(path.read_text(encoding="utf-8"))
    top.body = [node for node in top.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert not {name.split(".")[0] for name in modules(top)} & HEAVY


def test_nothing_but_the_command_line_imports_it():
    assert not [p for p in FILES if part_of(p) != "cli" and "cli" in set(imported(p))]
