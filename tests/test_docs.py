"""Documentation that is generated is current; files that are named exist."""

import importlib.util
import re
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
        "docs/adding-a-component.md",
        "docs/interop.md",
        "docs/codes.md",
    ],
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_every_committed_weight_has_a_card_and_is_no_pickle():
    assets = ROOT / "sanakit" / "assets"
    weights = list(assets.rglob("*.safetensors"))
    assert weights and all((w.parent / "card.json").is_file() for w in weights)
    assert not [p for p in assets.rglob("*") if p.suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt")]
