"""`sanakit.compare` and `sanakit.DriftMonitor` on tensors, arrays, prompts and files, in anybody's loop."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

import sanakit as sk
from sanakit.drift.files import compare_files
from sanakit.drift.stream import Stream
from sanakit.text_encoders import PromptEmbeds

WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_to_copy"}


def latents(seed, count=64, channels=3):
    return torch.randn(count, channels, 6, 6, generator=torch.Generator().manual_seed(seed))


def shifted(values, by=0.6):
    values = values.clone()
    values[:, 1] += by
    return values


@pytest.fixture(scope="module")
def moved():
    return sk.compare(latents(0), shifted(latents(1)))


def test_tensors_arrays_and_files_give_one_comparison(moved, tmp_path):
    save_file({"latents": latents(0)}, tmp_path / "a.safetensors")
    save_file({"latents": shifted(latents(1))}, tmp_path / "b.safetensors")
    command_line = compare_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors").as_dict()
    assert moved.verdict == "drift" and moved.as_dict() == command_line
    page = tmp_path / "page.html"
    mixed = sk.compare(latents(0).numpy(), str(tmp_path / "b.safetensors"), html=page)
    assert mixed.as_dict() == command_line
    assert "b.safetensors" in page.read_text() and "reference" in page.read_text()


def test_a_comparison_is_a_table_a_record_and_a_page(moved):
    frame = moved.to_frame()
    assert len(frame) == len(moved.readings) and {"name", "value", "p_value", "alarm", "where"} <= set(frame.columns)
    assert frame["alarm"].sum() == len(moved.alarms) > 0 and moved.alarms[0].p_value == frame["p_value"].min()
    shown = moved._repr_html_()
    assert ">drift</b>" in shown and "channel 1" in shown and "statistics moved more than chance allows" in shown
    json.dumps(moved.as_dict())
    with pytest.raises(AttributeError):
        moved.verdict = "no-drift"


def test_the_same_numbers_and_too_few():
    assert sk.compare(latents(0), latents(0)).verdict == "no-drift"
    assert sk.compare(latents(0), latents(1, count=8)).verdict == "inconclusive"


def test_embeddings_need_their_mask():
    embeds, mask = torch.randn(40, 5, 8), torch.ones(40, 5, dtype=torch.bool)
    prompts = PromptEmbeds(embeds, mask)
    assert sk.compare(prompts, embeds.numpy(), current_mask=mask.numpy()).verdict == "no-drift"
    with pytest.raises(sk.SanakitError, match=r"SK0701.*current is \(40, 5, 8\) without a mask.*"):
        sk.compare(prompts, embeds)
    with pytest.raises(sk.SanakitError, match=r"SK0701.*\(64, 3, 6, 6\) with a mask"):
        sk.compare(latents(0), latents(1), reference_mask=mask)
    with pytest.raises(sk.SanakitError, match=r"SK0702.*differ in kind: latents against embeddings"):
        sk.compare(latents(0), prompts)
    with pytest.raises(sk.SanakitError, match=r"SK0701.*reference is a list, expected a tensor"):
        sk.compare([1.0, 2.0], latents(0))
    with pytest.raises(sk.SanakitError, match=r"SK0701.*does not exist"):
        sk.compare("no-such-file", latents(0))
    with pytest.raises(sk.SanakitError, match=r"SK0104.*alpha is 5"):
        sk.compare(latents(0), latents(1), alpha=5)


def watched(monitor, steps, start=1, change=lambda values, step: values):
    for step in range(start, steps + 1):
        monitor.update(change(latents(step, count=16), step))
        if monitor.due(step):
            monitor.compute(step)
    return monitor


def planted(values, step):
    return shifted(values, 0.8) if step > 16 else values


def test_a_monitor_alarms_on_a_planted_shift_and_not_on_clean_data():
    clean = sk.DriftMonitor(latents(0, count=300), steps=32)
    assert clean.verdict == "inconclusive" and clean.every == 4
    assert watched(clean, 32).alarms == [] and clean.verdict == "no-drift"
    drifted = watched(sk.DriftMonitor(latents(0, count=300), steps=32, name="my loader"), 32, change=planted)
    first = drifted.alarms[0]
    assert drifted.verdict == "drift" and first.step > 16 and "my loader: channel 1" in first.where
    assert "since step 20" in first.where and "likely cause" in first.where


def test_a_monitor_goes_on_from_its_state_exactly(tmp_path):
    whole = watched(sk.DriftMonitor(latents(0, count=300), steps=32), 32, change=planted)
    begun = watched(sk.DriftMonitor(latents(0, count=300), steps=32), 22, change=planted)
    torch.save(begun.state_dict(), tmp_path / "monitor.pt")
    resumed = sk.DriftMonitor(latents(0, count=300).numpy(), steps=32)
    resumed.load_state_dict(torch.load(tmp_path / "monitor.pt", weights_only=True))
    assert watched(resumed, 32, start=23, change=planted).alarms == whole.alarms != begun.alarms
    with pytest.raises(sk.SanakitError, match=r"SK0505.*another reference"):
        sk.DriftMonitor(latents(1, count=300), steps=32).load_state_dict(begun.state_dict())


def test_a_monitor_is_the_stream_of_a_run():
    """The monitors of stage full read the same way: equal values give equal readings."""
    monitor = sk.DriftMonitor(latents(0, count=100), steps=8, num_evaluations=2, frozen=False, kind="generated")
    stream = Stream(
        "generated", latents(0, count=100), still=False, num_evaluations=2, steps=4, blocks=("mean", "log-sd")
    )
    for step in range(1, 5):
        monitor.update(latents(step, count=40) * 3)
        stream.observe(latents(step, count=40) * 3)
    assert monitor.compute(4) == stream.report(4) and monitor.alarms[0].threshold == 0.5


def test_tokens_with_a_mask_are_watched():
    embeds, mask = torch.randn(200, 5, 8, generator=torch.Generator().manual_seed(0)), torch.ones(200, 5)
    mask[:, 3:] = 0
    monitor = sk.DriftMonitor(embeds, mask=mask, kind="embeddings", steps=2, num_evaluations=1)
    other = PromptEmbeds(embeds[:64] * torch.tensor([1.0, 1, 1, 99, 99])[:, None], mask[:64].bool())
    monitor.update(other)  # what is masked does not count
    monitor.update(other)
    assert [reading.alarm for reading in monitor.compute(2)] == [False]
    layer = sk.DriftMonitor(embeds, kind="activations", frozen=False, steps=1, num_evaluations=1)
    layer.update(embeds.bfloat16() * 5)
    assert [reading.alarm for reading in layer.compute(1)] == [True]


@pytest.mark.parametrize(
    "options, told",
    [
        ({"kind": "latent"}, "SK0104.*did you mean latents"),
        ({"steps": 0}, "SK0104.*steps is 0"),
        ({"kind": "embeddings"}, "SK0701.*kind embeddings is .300, 3, 6, 6., expected .N, L, D."),
        ({"mask": torch.ones(2, 2)}, "SK0701.*mask of reference is .2, 2., expected .300, 3."),
    ],
)
def test_a_monitor_refuses_what_it_cannot_watch(options, told):
    with pytest.raises(sk.SanakitError, match=told):
        sk.DriftMonitor(latents(0, count=300), **{"steps": 8} | options)


def test_values_of_another_shape_are_refused():
    monitor = sk.DriftMonitor(latents(0, count=300), steps=8)
    with pytest.raises(sk.SanakitError, match=r"SK0701.*values of kind latents is \(3, 6, 6\)"):
        monitor.update(latents(1)[0])
    monitor.update(latents(1, channels=4))
    with pytest.raises(sk.SanakitError, match="SK0702"):
        monitor.compute(1)


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket._qualified_op_name.rpartition("::")[2])
        return function(*args, **kwargs or {})


def test_an_update_never_waits_for_the_device():
    monitor = sk.DriftMonitor(latents(0, count=300), steps=8)
    batch = latents(1)
    with Waits() as counted:
        for _ in range(8):
            monitor.update(batch)
    assert "clone" in counted.names and not set(counted.names) & WAITS


def test_an_array_of_numpy_is_watched():
    monitor = sk.DriftMonitor(latents(0, count=300).numpy(), steps=1, num_evaluations=1)
    monitor.update(np.asarray(latents(1)))
    assert len(monitor.compute(1)) == 1
