"""The scripts for a machine with a GPU run in their CPU mode, and every check says what it measured."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def gpu_check():
    sys.path[:0] = [str(BENCHMARKS)]
    spec = importlib.util.spec_from_file_location("gpu_check", BENCHMARKS / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_host_waits_for_is_counted_a_step(gpu_check):
    """On the CPU these are the counters that the fused optimiser reads, the same number at every step; what a device is
    waited for is held by tests/test_device.py."""
    counted = gpu_check.check_syncs(True)
    per_step = counted["per_step"]
    assert per_step and all(count == int(count) for count in per_step.values())
    assert counted["events"] == {name: count * counted["steps"] for name, count in per_step.items()}


def test_memory_and_loop_are_measured(gpu_check):
    assert [row["checkpointing"] for row in gpu_check.check_memory(True)["rows"]] == [False, True]
    loop = gpu_check.check_loop(True)
    assert len(loop["loop over bare loop"]) == 2 and loop["seconds_per_step"] > 0


def test_both_encoders_are_timed(gpu_check):
    rates = gpu_check.check_encode(True)["rates"]
    assert len(rates) == 4 and min(rates.values()) > 0


def test_a_check_writes_its_json_when_it_ends(gpu_check, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "kernels", "--out", str(tmp_path), "--cpu"])
    assert gpu_check.main() == 0
    written = json.loads((tmp_path / "kernels.json").read_text())
    assert written["device"] == "cpu" and written["measured"] is False and written["check"] == "kernels"


def test_the_script_names_every_check_and_stays_below_eight_minutes(gpu_check):
    import re

    text = (ROOT / "experiments" / "gpu_check.sh").read_text()
    limits = dict(re.findall(r'check (\w+) "\$\(limit (\d+)\)"', text))
    assert set(limits) == set(gpu_check.CHECKS) | {"real_size"}
    assert sum(map(int, limits.values())) <= 480
