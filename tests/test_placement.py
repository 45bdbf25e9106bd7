"""Where things are computed: one module names devices, parts are on the device only while they are needed, and come
back."""

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import sanakit
from sanakit.batching import batch_size, in_batches
from sanakit.errors import SanakitError
from sanakit.placement import Placement, choose, find_device

ROOT = Path(sanakit.__file__).parent
NAMES = re.compile(r"^(cuda|hip|mps|xpu|npu|hpu|mtia)(:\d+)?$")
# compile targets of Triton, which name a compiler back end and no device of this machine
TARGETS = {"kernels/check.py"}


def device_names(path: Path) -> list[str]:
    """Lines of a module that name a kind of device: a string, `torch.cuda`, `tensor.is_cuda`, `tensor.cuda()`."""
    places = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMES.match(node.value):
            places.append(f"{path.name}:{node.lineno} {node.value!r}")
        if isinstance(node, ast.Attribute) and NAMES.match(node.attr.removeprefix("is_")):
            places.append(f"{path.name}:{node.lineno} .{node.attr}")
    return places


def test_only_the_placement_names_a_device():
    others = [p for p in ROOT.rglob("*.py") if str(p.relative_to(ROOT)) not in TARGETS | {"placement.py"}]
    assert [line for path in others for line in device_names(path)] == []


def test_a_module_that_names_a_device_is_found(tmp_path):
    path = tmp_path / "one.py"
    path.write_text("import torch\nif torch.cuda.is_available():\n    torch.zeros(1).to('mps')\n")
    assert device_names(path) == ["one.py:2 .cuda", "one.py:3 'mps'"]


def test_auto_is_the_cpu_without_an_accelerator_and_the_accelerator_with_one(fake_device):
    assert choose().device == torch.device("fakegpu", 0)
    assert choose("fakegpu:0").device == torch.device("fakegpu", 0)
    assert choose("cpu").device == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused_with_what_is(fake_device):
    with pytest.raises(SanakitError, match=r"SK0905.*finds fakegpu"):
        find_device("cuda")
    with pytest.raises(SanakitError, match=r"SK0905.*finds 1 of fakegpu"):
        find_device("fakegpu:3")
    with pytest.raises(SanakitError, match=r"SK0104.*did you mean cuda"):
        find_device("cudo")


def test_precision_by_device(fake_device):
    placement = choose()
    assert (placement.vae, placement.text_encoder, placement.base) == ("fp32", "bf16", "bf16")
    assert placement.train_precision("auto") == "bf16"
    cpu = choose("cpu")
    assert (cpu.vae, cpu.text_encoder, cpu.base, cpu.train_precision("auto")) == ("fp32", "fp32", "fp32", "fp32")
    with pytest.raises(SanakitError, match="fp16 needs a GPU"):
        cpu.train_precision("fp16")
    assert choose(vae="bf16", base="fp32").compute_facts("vae") == {"compute": "bfloat16"}
    assert cpu.compute_facts("base") == {}


def test_what_was_only_read_comes_back_untouched_and_uncopied(fake_device):
    layer = nn.Linear(64, 64)
    kept, placement = layer.weight.data_ptr(), Placement(torch.device("fakegpu", 0), base="bf16")
    before = fake_device.read()["allocated"]
    with fake_device.Trace() as trace, placement.holding(layer, part="base"):
        assert layer.weight.device.type == "fakegpu" and layer.weight.dtype == torch.bfloat16
        layer(torch.ones(1, 64, device="fakegpu", dtype=torch.bfloat16))
        with placement.holding(layer, part="base"):  # calls nest
            pass
        assert layer.weight.device.type == "fakegpu"
    assert layer.weight.data_ptr() == kept and layer.weight.dtype == torch.float32
    assert trace.to_host == 0
    assert fake_device.read()["allocated"] == before


def test_what_was_written_comes_back(fake_device):
    layer, placement = nn.Linear(4, 4), Placement(torch.device("fakegpu", 0))
    with placement.holding(layer), torch.no_grad():
        layer.weight.fill_(3)
    assert layer.weight.device.type == "cpu" and (layer.weight == 3).all()
    with placement.holding(layer):
        layer.load_state_dict({"weight": torch.ones(4, 4), "bias": torch.full((4,), 2.0)})
    assert (layer.bias == 2).all() and layer.bias.device.type == "cpu"


def test_a_batch_that_does_not_fit_is_halved_and_said(fake_device):
    told: list[str] = []
    with fake_device.present(memory=fake_device.read()["allocated"] + (1 << 20)):

        def work(rows):
            return torch.ones(len(rows), 1 << 16, device="fakegpu").sum(1).tolist()  # 256 KiB a row

        results, size = in_batches(range(10), 8, work, what="encoding", said=told.append)
        assert sum(map(len, results)) == 10 and size in (1, 2)
        assert told[0] == "encoding: out of memory, on with 4 at a time"
        with pytest.raises(SanakitError, match=r"SK0906.*one of them does not fit"):
            in_batches([0], 1, lambda rows: torch.ones(1 << 20, device="fakegpu"), what="encoding", said=told.append)


def test_the_batch_is_what_the_free_memory_holds(fake_device):
    placement = choose()
    with fake_device.present(memory=fake_device.read()["allocated"] + 1000):

        def probe():
            torch.ones(25, device="fakegpu")  # 100 bytes

        assert batch_size(placement, 32, probe) == 8
        assert batch_size(placement, 4, probe) == 4
        assert batch_size(placement, 32, lambda: None) == 32
    assert choose("cpu").accelerated is False and batch_size(choose("cpu"), 32, probe) == 32
    assert placement.peak_of(lambda: torch.ones(1000, device="fakegpu")) == 4000
