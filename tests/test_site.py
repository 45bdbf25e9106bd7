"""The documentation site and the notebook are made from the pages of docs/; examples say how they are run."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import sanakit

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose Python names are of no interest here."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)


def pages(entry):
    """Files of a navigation, from top to bottom."""
    if isinstance(entry, str):
        return [entry]
    rows = entry.values() if isinstance(entry, dict) else entry
    return [page for row in rows for page in pages(row)]


def test_every_page_of_the_navigation_exists_once_and_strict_building_names_the_others():
    listed = pages(CONFIG["nav"])
    assert len(listed) == len(set(listed)) >= 20
    assert set(listed) == {path.name for path in DOCS.glob("*.md")}, "mkdocs builds strictly: list the page under nav"
    assert [next(iter(row)) for row in CONFIG["nav"][1:]] == ["Tutorial", "How-to guides", "Explanation", "Reference"]
    assert CONFIG["validation"]["nav"]["omitted_files"] == CONFIG["validation"]["links"]["not_found"] == "warn"


def test_the_python_reference_names_what_there_is():
    named = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    for path in named:
        parts = path.split(".")
        module = next(".".join(parts[:n]) for n in range(len(parts), 0, -1) if is_module(".".join(parts[:n])))
        left = path.removeprefix(module).strip(".")
        source = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
        assert not left or re.search(rf"^(def|class) {left}\b", source, re.MULTILINE), path
    for name, module in sanakit.MODULES.items():
        if not name.startswith("list_"):
            assert f"::: {module}" in page and name in page, f"{name} is missing in docs/api.md"


def is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_page_becomes_a_notebook_whose_cells_are_its_blocks():
    script = load_script("make_notebook")
    text = "# Title\n\n```python\nx = 1\n```\n\nthen [data](data.md#here)\n\n"
    text += "```bash\nsanakit ls\n```\n\n```text\nshown\n```\n"
    cells = script.cells_of(text)
    assert [(cell["cell_type"], cell["source"]) for cell in cells] == [
        ("markdown", "# Title"),
        ("code", "x = 1"),
        ("markdown", "then [data](../data.html#here)"),
        ("code", "%%bash --no-raise-error\nsanakit ls"),
        ("markdown", "```text\nshown\n```"),
    ]
    library = script.notebook_of((DOCS / "library.md").read_text(encoding="utf-8"))
    code = [cell["source"] for cell in library["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 4 and all(compile(cell, "cell", "exec") for cell in code)
    assert len({cell["id"] for cell in library["cells"]}) == len(library["cells"])


@pytest.mark.parametrize(
    "told", ["error[SK0101]: no VAE", "Usage: sanakit [OPTIONS]", "bash: sanakit: command not found"]
)
def test_a_command_that_ends_in_an_error_stops_the_notebook(told):
    script = load_script("make_notebook")
    verdict = {"source": "sanakit swap-vae", "outputs": [{"text": "Not yet: 8 steps are too few\n"}]}
    script.refuse_errors([verdict, {"source": "text"}])
    with pytest.raises(RuntimeError, match="in the cell\nsanakit ls"):
        script.refuse_errors([verdict, {"source": "sanakit ls", "outputs": [{"text": f"line 1\n{told}\n"}]}])


def test_the_site_shows_what_was_executed(tmp_path):
    hooks = load_script("site_hooks")
    for name in ("tutorial.ipynb", "tutorial.html", "half.ipynb"):
        (tmp_path / name).write_text("{}")
    executed = hooks.notebook_files(tmp_path)
    assert list(executed) == ["tutorial"]
    page = hooks.with_link("# Title\n\nText\n", "tutorial", executed)
    assert page.startswith("# Title\n\nThis page was executed: ") and page.endswith("\n\nText\n")
    assert re.findall(r"\]\((.*?)\)", page) == ["notebooks/tutorial.html", "notebooks/tutorial.ipynb"]
    assert hooks.with_link("# Title\n", "half", executed) == "# Title\n"
    assert (ROOT / CONFIG["hooks"][0]).samefile(hooks.__file__)


@pytest.mark.slow
def test_the_first_lines_of_the_guide_run_in_a_kernel(tmp_path):
    for package in ("nbclient", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    script = load_script("make_notebook")
    page = (DOCS / "library.md").read_text(encoding="utf-8").split("## Swap, and train")[0]
    done = script.execute(script.notebook_of(page), tmp_path)
    outputs = "".join(str(cell.get("outputs", "")) for cell in done["cells"])
    assert "tiny-sana" in outputs and "pass" in outputs


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_every_example_states_its_command_and_compiles(path):
    text = path.read_text(encoding="utf-8")
    assert f"python experiments/examples/{path.name}" in text.split('"""')[1]
    compile(text, str(path), "exec")


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link(tmp_path):
    if not all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("mkdocs-material and mkdocstrings are not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "load_vae" in (tmp_path / "site" / "api.html").read_text()
