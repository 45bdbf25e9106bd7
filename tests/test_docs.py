"""Documentation that is generated is current; files that are named exist."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def generated():
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "experiments" / "write_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PAGES


@pytest.mark.parametrize("page", ["docs/codes.md", "docs/decision-study.md", "docs/gates.md", "docs/zoo.md"])
def test_generated_pages_are_current(page):
    assert (ROOT / page).read_text() == generated()[page](), "run python experiments/write_docs.py"


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "docs/concepts.md",
        "docs/data.md",
        "docs/strategies.md",
        "docs/forecast.md",
        "docs/decision-study.md",
        "docs/adding-a-component.md",
        "docs/interop.md",
        "docs/languages.md",
        "docs/recipes.md",
        "docs/library.md",
        "docs/evaluation.md",
        "docs/tutorial.md",
        "docs/index.md",
        "docs/swapping.md",
        "docs/monitors.md",
        "docs/codes.md",
    ],
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", ["docs/swapping.md", "docs/tutorial.md"])
def test_commands_of_a_page_are_known_with_their_options(page):
    import typer

    from sanakit.cli import data, evaluate, export, info, results, swap  # noqa: F401  each adds its commands
    from sanakit.cli.app import app

    commands = typer.main.get_command(app).commands
    blocks = re.findall(
        r"^```(?:bash)?\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("sanakit ")]
    assert len(lines) >= 6
    for line in lines:
        name, *words = shlex.split(line)[1:]
        commands[name].make_context(name, words)  # raises for an option that does not exist


@pytest.mark.slow
def test_the_lines_of_swapping_in_python_run():
    (block,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "swapping.md").read_text(), re.MULTILINE | re.DOTALL
    )
    namespace = {}
    exec(block, namespace)
    assert namespace["plan"].kind == "vae" and namespace["plan"].notes


def test_every_committed_weight_has_a_card_and_is_no_pickle():
    assets = ROOT / "sanakit" / "assets"
    weights = list(assets.rglob("*.safetensors"))
    assert weights and all((w.parent / "card.json").is_file() for w in weights)
    assert not [p for p in assets.rglob("*") if p.suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt")]


WALKS = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Three walks")[2]
ROWS = re.compile(r"^\| `(sanakit/[^`]+)` \| (.+) \|$", re.MULTILINE)


def test_the_three_walks_name_files_and_functions_that_are_there_and_return_to_no_file():
    walks = [ROWS.findall(part) for part in WALKS.split("\n**")[1:]]
    assert len(walks) == 3 and all(len(walk) >= 7 for walk in walks)
    for walk in walks:
        files = [file for file, _ in walk]
        assert len(files) == len(set(files))
        for file, told in walk:
            path = ROOT / file
            sources = sorted(path.glob("*.py")) if path.is_dir() else [path]
            text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
            for name in re.findall(r"`([A-Za-z_.]+)`", told):
                last = name.rpartition(".")[2]
                defined = re.search(rf"(def|class) {re.escape(last)}\b", text)
                assert defined or last in text or (path.parent / f"{name}").exists(), (file, name)
