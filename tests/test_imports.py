"""Imports go one way: every package may use those below it only."""

import ast
from pathlib import Path

import pytest

import sanakit

ROOT = Path(sanakit.__file__).parent
LAYERS = [
    {"contracts", "errors", "hashing"},
    {"registry", "flow"},
    {"vaes", "text_encoders", "drift", "core", "adapters", "features", "interop"},
    {"assembly"},
    {"data", "sampling"},
    {"alignment", "evaluate", "train"},
    {"monitors", "checkpoint", "gates", "config", "run"},
    {"swap", "doctor"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = [p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sanakit."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    names = set(imported(path)) - {own}
    if own == "reporting":
        assert names <= {"contracts", "errors"}
        return
    assert own in RANK, f"{own} has no place in the layers"
    wrong = [n for n in names if RANK.get(n, -1 if n == "reporting" and own == "cli" else 99) > RANK[own]]
    assert not wrong
