"""Imports go down only: every package has a rank of its own, and neither packages nor modules import in a circle.

Imports inside functions count as well; those for type checkers alone do not.
"""

import importlib.util
from pathlib import Path

import pytest

import sanakit

ROOT = Path(sanakit.__file__).parent
SCRIPT = ROOT.parent / "experiments" / "draw_imports.py"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


drawing = load(SCRIPT)
ORDER = drawing.ORDER
MODULES = drawing.read_modules(ROOT)
EDGES = drawing.import_edges(MODULES)
TOP_EDGES = drawing.import_edges(MODULES, inner=False)

SIBLINGS = {"vaes", "text_encoders", "adapters"}
LIGHT = {
    "contracts",
    "presets",
    "distributed",
    "errors",
    "registry",
    "inventory",
    "scaffold",
    "tracebacks",
    "config",
    "decision",
    "reporting",
    "cli",
    "doctor",
}
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "numpy", "pandas", "sklearn", "scipy", "torchmetrics"}


def test_every_package_has_one_rank_and_every_rank_one_package():
    assert len(ORDER) == len(set(ORDER))
    assert {drawing.package_of(module) for module in MODULES} - {""} == set(ORDER)


@pytest.mark.parametrize("module", [m for m in MODULES if m], ids=str)
def test_a_module_imports_only_what_is_below_it(module):
    rank = ORDER.index(drawing.package_of(module))
    above = {other for other in EDGES[module] if other and ORDER.index(drawing.package_of(other)) > rank}
    assert not above, f"{module} imports {sorted(above)}, which lie above it"


def test_no_modules_import_in_a_circle():
    assert drawing.circles(EDGES) == []


def test_imports_are_absolute():
    for path in MODULES.values():
        assert not drawing.relative_imports(path), path


def test_the_foundations_import_nothing_of_sanakit():
    assert not EDGES["contracts"] and not EDGES["errors"]


def test_siblings_do_not_import_each_other():
    for module, others in EDGES.items():
        if (package := drawing.package_of(module)) in SIBLINGS:
            assert not ({drawing.package_of(other) for other in others} & SIBLINGS) - {package}, module


def test_reporting_imports_files_records_and_the_decision_alone():
    for module, others in EDGES.items():
        if drawing.package_of(module) == "reporting":
            allowed = {"reporting", "contracts", "errors", "files", "records", "decision"}
            assert {drawing.package_of(other) for other in others} <= allowed, module


@pytest.mark.parametrize("module", [m for m in MODULES if drawing.package_of(m) in LIGHT], ids=str)
def test_light_modules_import_nothing_heavy_when_they_are_imported(module):
    """At the top of a file only: inside a function a heavy import is the point."""
    assert not drawing.outside_imports(MODULES[module], inner=False) & HEAVY


def test_nothing_but_the_command_line_imports_it():
    importers = {
        drawing.package_of(m) for m, others in EDGES.items() if any(drawing.package_of(o) == "cli" for o in others)
    }
    assert importers <= {"cli", "__main__"}


def test_the_drawing_is_current_and_every_arrow_points_down():
    page = (ROOT.parent / "docs" / "architecture.md").read_text()
    assert drawing.mermaid(EDGES) in page, "run python experiments/draw_imports.py"
    for package, others in drawing.package_edges(EDGES).items():
        for other in others:
            assert ORDER.index(other) < ORDER.index(package)


def test_a_circle_and_an_arrow_up_are_found(tmp_path):
    """The proof's own proof: two modules that import each other inside functions."""
    (tmp_path / "one.py").write_text("def ask():\n    from sanakit.two import answer\n    return answer\n")
    (tmp_path / "two.py").write_text("from sanakit import one\n\nanswer = one\n")
    edges = drawing.import_edges(drawing.read_modules(tmp_path))
    assert edges == {"one": {"two"}, "two": {"one"}}
    assert drawing.circles(edges) == [["one", "two"]]
    assert drawing.circles(drawing.import_edges(drawing.read_modules(tmp_path), inner=False)) == []
