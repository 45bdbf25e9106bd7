"""Every fault of the catalogue is caught by the gate, or refused by the error, that names its cause; clean systems
raise no alarm."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from sanakit.checks import GATES
from sanakit.contracts import Verdict
from sanakit.errors import CODES

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "experiments" / "faults"))


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / "faults" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses evaluation their module up
    spec.loader.exec_module(module)
    return module


faults = load("faults")
CLEAN = faults.clean_systems()
QUICK = (
    "VAE pca-f8c4",
    "VAE pca-f16c16",
    "VAE pca-f32c64",
    "VAE pca-f16c16 from a folder",
    "text encoder wordllama",
    "text encoder wordllama beside minilm",
    "text encoder minilm beside wordllama",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANAKIT_CACHE", str(root / "cache"))
        yield faults.World(root, count=32)


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda f: f.name)
def test_a_planted_fault_is_caught_by_what_names_its_cause(world, fault):
    row = fault.run(world)
    assert row["caught"], row
    assert row["named_cause"], row["said"]


@pytest.mark.parametrize(
    ("name", "evaluate"),
    [pytest.param(n, j, id=n, marks=[] if n in QUICK else [pytest.mark.slow]) for n, j in CLEAN],
)
def test_a_clean_system_raises_no_alarm(world, name, evaluate):
    results = evaluate(world)
    assert results
    assert not [(r.gate, r.value, r.threshold) for r in results if r.verdict == Verdict.FAIL]


def test_the_catalogue_is_wide_and_its_gates_and_codes_exist():
    assert len({f.name for f in faults.FAULTS}) == len(faults.FAULTS) >= 25
    assert len({name for name, _ in CLEAN}) == len(CLEAN) >= 20
    assert all(f.code in CODES for f in faults.FAULTS)
    gates = {f.gate for f in faults.FAULTS if "/" in f.gate}
    assert gates <= set(GATES.names())
    component = {name for name in GATES.names() if name.startswith("component/")}
    assert component <= gates, "every component gate has a fault that it catches"


def test_the_committed_result_is_of_this_catalogue():
    kept = json.loads((ROOT / "experiments" / "results" / "fault_catalogue.json").read_text())
    assert [row["fault"] for row in kept["faults"]] == [f.name for f in faults.FAULTS]
    assert [row["system"] for row in kept["clean"]] == [name for name, _ in CLEAN]
    assert all(row["caught"] for row in kept["faults"])
    assert not [row for row in kept["clean"] if row["verdict"] == "fail"]
