"""Draw which package of sanakit imports which, as a Mermaid graph in docs/architecture.md.

python experiments/draw_imports.py

ORDER is the rule: a package may import those before it. tests/test_imports.py holds it for every module.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- imports: begin -->\n", "<!-- imports: end -->\n"
ORDER = [
    "limits",
    "contracts",
    "errors",
    "hashing",
    "flow",
    "held",
    "placement",
    "batching",
    "kernels",
    "files",
    "locks",
    "records",
    "folders",
    "hub",
    "weights",
    "tracebacks",
    "registry",
    "inventory",
    "scaffold",
    "distributed",
    "ranks",
    "config_fields",
    "config",
    "presets",
    "run",
    "decision",
    "reporting",
    "doctor",
    "vaes",
    "text_encoders",
    "adapters",
    "core",
    "assembly",
    "data",
    "drift",
    "sampling",
    "evaluation",
    "alignment",
    "strategies",
    "formats",
    "loading",
    "training",
    "interop",
    "checks",
    "swap",
    "testing",
    "api",
    "integrations",
    "needs",
    "cli",
    "__main__",
]
FLOORS = {  # what the drawing shows as one box, from the bottom up
    "foundation": ORDER[: ORDER.index("reporting")],
    "reporting": ["reporting"],
    "doctor": ["doctor"],
}
Edges = dict[str, set[str]]


def read_modules(folder: Path) -> dict[str, Path]:
    """Dotted name below `folder` -> file; the package's own __init__ has the empty name."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imported_names(path: Path, *, inner: bool = True) -> Iterator[str]:
    """Dotted names that a file imports, blocks for type checkers left out; inner: inside functions too. `from package
    import name` gives both, as `name` may be a module."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                pending += node.orelse
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif inner or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                pending.append(node)


def relative_imports(path: Path) -> bool:
    return any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def outside_imports(path: Path, *, inner: bool = True) -> set[str]:
    """First parts of the libraries that a file imports."""
    return {name.split(".")[0] for name in imported_names(path, inner=inner)} - {"sanakit"}


def import_edges(modules: dict[str, Path], *, inner: bool = True) -> Edges:
    """Of every module: the modules of sanakit that it imports."""
    edges: Edges = {module: set() for module in modules}
    for module, path in modules.items():
        for name in imported_names(path, inner=inner):
            first, _, target = name.partition(".")
            while first == "sanakit" and target and target not in modules:
                target = target.rpartition(".")[0]
            if first == "sanakit" and target and target != module:
                edges[module].add(target)
    return edges


def package_of(module: str) -> str:
    return module.split(".")[0]


def package_edges(edges: Edges) -> Edges:
    packages: Edges = {}
    for module, others in edges.items():
        package = package_of(module)
        packages.setdefault(package, set()).update({package_of(other) for other in others} - {package})
    packages.pop("", None)
    return packages


def reachable(edges: Edges, start: str) -> set[str]:
    seen: set[str] = set()
    pending = list(edges.get(start, ()))
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending += edges.get(node, ())
    return seen


def circles(edges: Edges) -> list[list[str]]:
    """Groups of modules that reach one another."""
    reach = {module: reachable(edges, module) for module in edges}
    groups = {frozenset(o for o in reach[m] if m in reach.get(o, ())) for m in edges if m in reach[m]}
    return sorted(sorted(group) for group in groups)


def mermaid(edges: Edges) -> str:
    """A graph from the command line down. Packages of the foundation are one box; an arrow that another path implies is
    left out."""
    box = {package: floor for floor, packages in FLOORS.items() for package in packages}
    boxed: Edges = {}
    for package, others in package_edges(edges).items():
        name = box.get(package, package)
        boxed.setdefault(name, set()).update({box.get(other, other) for other in others} - {name})
    lines = ["```mermaid", "flowchart TD"]
    order = [name for name in dict.fromkeys(box.get(p, p) for p in reversed(ORDER)) if name in boxed]
    for name in order:
        direct = boxed[name] - {far for near in boxed[name] for far in reachable(boxed, near)}
        lines += [f"    {name} --> {other}" for other in order if other in direct]
    return "\n".join([*lines, "```"]) + "\n"


def main() -> None:
    drawing = mermaid(import_edges(read_modules(ROOT / "sanakit")))
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + drawing + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
