"""`validate`, `swap`, `race` and `relative_error` from objects: the numbers of the command line."""

import json
import re
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

import sanakit as sk
from sanakit import cli
from sanakit.api.quality import replaced_component
from sanakit.config import make_config
from sanakit.evaluation.held_out import held_out
from sanakit.swap import stages as engine
from sanakit.swap.identity import identity_of
from sanakit.text_encoders import TEXT_ENCODERS


@pytest.fixture
def parts(small_world):
    """(base, images, candidate) of the small world, loaded."""
    base, images = sk.load_base(small_world["base"]), sk.load_images(small_world["data"]["source"])
    return base, images, sk.load_vae("pca-f8c4")


def command_line(small_world, folder, stage, monkeypatch, *settings):
    """validation.json of a stage of the small world, written by the command itself."""
    named = ["--base", small_world["base"], "--data", small_world["data"]["source"], "--vae", "pca-f8c4"]
    sets = [word for setting in ("data.image_size=32", *settings) for word in ("--set", setting)]
    command = ["sanakit", "validate", "--stage", stage, *named, *sets, "--run-dir", str(folder), "--quiet"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (None, 0, 1, 4)  # verdicts
    return json.loads((folder / "validation.json").read_text(encoding="utf-8"))


def gates_of(record):
    """Without what depends on the clock."""
    timed = ("speed", "rate", "seconds", "memory")
    return [g for stage in record["stages"].values() for g in stage["gates"] if not any(t in g["gate"] for t in timed)]


def test_validate_gives_the_numbers_of_the_command_line(small_world, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, images, vae = parts
    record = command_line(small_world, tmp_path / "run", "component", monkeypatch)
    named = sk.validate("pca-f8c4", base=small_world["base"], data=small_world["data"]["source"])
    live = sk.validate(vae, base=base, data=images, run_dir=tmp_path / "kept")
    assert gates_of(named.as_dict()) == gates_of(live.as_dict()) == gates_of(record) != []
    assert live.verdict == record["verdict"] and (tmp_path / "kept" / "component.json").is_file()
    assert named.run_dir is None and not Path("runs").exists()
    frame = live.to_frame()
    assert list(frame["gate"]) == [gate.gate for gate in live.gates] and set(live.failed) <= set(live.gates)
    assert "component/" in live._repr_html_() and "gates " in live._repr_html_()


@pytest.mark.slow
def test_the_functions_compute_where_they_are_told_and_give_back_what_lies_on_the_cpu(parts, fake_device):
    """Every layer of a model on the accelerator that `auto` finds, none with cpu; the numbers are the CPU's."""
    base, images, vae = parts
    found = {}
    for device in ("cpu", "auto"):
        with layers_by_device() as calls:
            checked = sk.validate(vae, base=base, data=images, device=device)
            swapped = sk.swap(base, vae=vae, data=images, strategy="align", device=device)
            quality = sk.relative_error(swapped.system, images, base=base, device=device)
        found[device] = checked, quality, dict(calls)
        assert {p.device.type for p in swapped.system.core.parameters()} == {"cpu"}
        assert {p.device.type for p in base.core.parameters()} == {"cpu"}
    assert set(found["cpu"][2]) == {"cpu"} and set(found["auto"][2]) == {"fakegpu"}
    assert found["auto"][1].value == pytest.approx(found["cpu"][1].value, rel=1e-3)
    verdicts = [{gate.gate: gate.verdict for gate in checked.gates} for checked, _, _ in found.values()]
    assert verdicts[0] == verdicts[1]


def test_a_device_that_is_not_there_is_refused(parts):
    base, images, vae = parts
    for call in (sk.validate, sk.swap, sk.race, sk.relative_error):
        given = (vae,) if call is sk.validate else (base,) if call is not sk.relative_error else (base, images)
        more = {"vae": vae} if call in (sk.swap, sk.race) else {"base": base}
        more |= {} if call is sk.relative_error else {"data": images}
        with pytest.raises(sk.SanakitError, match="SK0905"):
            call(*given, **more, device="cuda:7")


@contextmanager
def layers_by_device():
    """How many layers of any model were called on each kind of device."""
    calls = Counter()

    def count(module, inputs):
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and not isinstance(module.weight, FakeTensor):
            calls[module.weight.device.type] += 1

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def test_a_name_that_tells_no_kind_is_refused(small_world):
    for component in ("path:somewhere", Path("somewhere")):
        with pytest.raises(sk.SanakitError, match=r"SK0104.*whether it is a VAE or a text encoder"):
            sk.validate(component, data=small_world["data"]["source"])
    with pytest.raises(sk.SanakitError, match=r"SK0101.*did you mean .*minilm"):
        sk.validate("minilmm", data=small_world["data"]["source"])
    with pytest.raises(sk.SanakitError, match=r"SK0403.*object|SK0403.*holds 20 images"):
        sk.validate("pca-f8c4", data=sk.load_images(small_world["data"]["source"]).subset(range(20)))


def test_a_swap_starts_where_the_command_line_starts(small_world, parts, tmp_path):
    base, images, vae = parts
    before = {name: tensor.clone() for name, tensor in base.core.state_dict().items()}
    swapped = sk.swap(base, vae=vae, data=images, strategy="align")
    values = {"base": small_world["base"], "data": small_world["data"], "vae": {"name": "pca-f8c4"}}
    values["train"] = {"strategy": "align"}
    context = engine.prepare(make_config(values), tmp_path / "run", lambda *_: None)
    from sanakit.strategies.base import strategy_named
    from sanakit.swap.start import build_start

    system, scores = build_start(context, strategy_named("align"))
    assert swapped.scores == scores and swapped.strategy.initialise == "align"
    for (name, ours), theirs in zip(
        swapped.system.core.state_dict().items(), system.core.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    result = held_out(system, context.candidate_data[1], count=context.num_held_out)
    errors = context.target.relative(result)
    assert np.array_equal(swapped.quality.per_image, errors)
    quality = sk.relative_error(swapped.system, images, base=base)
    assert quality.as_dict() == swapped.quality.as_dict() and quality.ci_low < quality.value < quality.ci_high
    assert str(quality.verdict) == swapped.verdict and quality.value == pytest.approx(errors.mean())
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.core.state_dict().items())
    assert swapped.as_dict()["start"] == "align" and "Relative error" in quality._repr_html_()
    assert "not trained" in swapped._repr_html_() and len(quality.to_frame()) == len(errors)


def test_a_swapped_system_trains_samples_saves_and_exports(parts, tmp_path):
    base, images, vae = parts
    swapped = sk.swap(base, vae=vae, data=images)
    assert swapped.strategy.name == "finetune" and swapped.strategy.initialise in ("align", "align-blocks")
    groups = swapped.parameter_groups(1e-3)
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["input"] == 1e-3 and rates["core"] == pytest.approx(7e-4)
    assert sum(len(group["params"]) for group in groups) == len(list(swapped.system.core.parameters()))
    slower = swapped.parameter_groups(1e-3, layer_decay=0.5)
    assert {round(g["lr"], 6) for g in slower if g["name"] == "core"} == {7e-4, 3.5e-4}
    optimizer = torch.optim.SGD(groups)
    noisy, prompt = torch.randn(2, *swapped.system.latent_shape), swapped.system.text_encoder.encode(["a", "b"])
    swapped.system.velocity(noisy, torch.tensor([0.3, 0.6]), prompt).square().mean().backward()
    optimizer.step()
    image = swapped.pipeline()("a red apple", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (32, 32, 3)
    with torch.no_grad():
        expected = swapped.system.velocity(noisy, torch.tensor([0.3, 0.6]), prompt)
        for folder in (swapped.save(tmp_path / "saved"), tmp_path / "exported"):
            if folder.name == "exported":
                assert swapped.export(folder)  # reasons: no DC-AE
            back = sk.load_base(folder)
            again = back.velocity(noisy, torch.tensor([0.3, 0.6]), back.text_encoder.encode(["a", "b"]))
            assert torch.equal(again, expected) and back.vae.stats == vae.stats and back.image_size == 32
    with pytest.raises(sk.SanakitError, match="SK0606"):
        swapped.save(tmp_path / "saved")


def test_what_cannot_be_saved_leaves_no_folder_behind(parts, tmp_path, monkeypatch):
    base, images, vae = parts
    swapped = sk.swap(base, vae=vae, data=images, strategy="align")
    with monkeypatch.context() as patched:
        patched.setattr(type(vae), "decode_raw", lambda self, raw: torch.rand(len(raw), 3, 32, 32))
        with pytest.raises(sk.SanakitError, match="SK0604.*reads back otherwise"):
            swapped.save(tmp_path / "saved")
    assert not list(tmp_path.glob("*saved*"))
    assert sk.load_base(swapped.save(tmp_path / "saved")).image_size == 32


def test_which_component_was_replaced_is_told_by_what_is_applied(parts):
    base, images, vae = parts
    vae = sk.load_vae(base.vae, stats=sk.LatentStats(mean=(0.1,), std=(1.7,)))
    read_back = sk.load_vae(base.vae, stats=sk.LatentStats(mean=(0.1,) * 4, std=(1.7,) * 4))
    assert identity_of(vae) == identity_of(read_back) != identity_of(base.vae)
    start, encoder = replace(base, vae=vae), sk.load_text_encoder(base.text_encoder, lower_case=True)
    assert replaced_component(replace(start, vae=read_back, text_encoder=encoder), start) == "text_encoder"
    assert replaced_component(start, base) == replaced_component(base, base) == "vae"
    with pytest.raises(sk.SanakitError, match=r"SK0104.*both others(.*\n)*.*one swap at a time"):
        sk.relative_error(replace(start, text_encoder=encoder), images, base=base)


def test_a_live_text_encoder_is_validated_and_swapped_in(parts):
    base, images, _ = parts
    tiny = TEXT_ENCODERS.get("minilm").tiny()
    encoder = sk.load_text_encoder(tiny.model, tokenizer=tiny.tokenizer, max_tokens=8)
    alone = sk.validate(encoder, data=images)
    assert alone.as_dict()["base"] == "none" and alone.as_dict()["candidate"].startswith("object:BertModel-")
    assert alone.as_dict()["kind"] == "text_encoder" and "component/" in alone.gates[0].gate
    swapped = sk.swap(base, text_encoder=encoder, data=images, strategy="align")
    assert swapped.system.text_encoder is encoder and swapped.system.vae is base.vae
    assert swapped.system.core.config.caption_channels == 16 and base.core.config.caption_channels == 256
    assert swapped.scores and swapped.pipeline()("red", num_inference_steps=1, output_type="np").images.shape[1] == 32


def test_swap_and_race_take_exactly_one_component(small_world):
    for function in (sk.swap, sk.race):
        with pytest.raises(sk.SanakitError, match="SK0104.*neither vae nor text_encoder"):
            function("tiny-sana", data="embedded")
    with pytest.raises(sk.SanakitError, match="SK0110.*serves swaps of text_encoder only"):
        sk.swap(small_world["base"], vae="pca-f8c4", data=small_world["data"]["source"], strategy="cross-attention")


@pytest.mark.slow
def test_a_race_gives_the_numbers_of_the_command_line(small_world, parts, tmp_path, monkeypatch):
    base, images, vae = parts
    train = {"batch_size": 4, "warmup": 2, "start": "align"}
    settings = ["smoke.budget_steps=8", "smoke.held_out=16", "smoke.rates=[1.0]", "smoke.strategies=[align+head]"]
    settings += [f"train.{key}={value}" for key, value in train.items()]
    record = command_line(small_world, tmp_path / "run", "smoke", monkeypatch, *settings)
    sections, steps = {"smoke": {"held_out": 16, "rates": [1.0]}, "train": train}, []
    raced = sk.race(
        base,
        vae=vae,
        data=images,
        budget=8,
        strategies="align+head",
        sections=sections,
        on_step=lambda label, done, total: steps.append(label),
    )
    expected = record["strategy"]
    assert raced.recommendation == expected["recommended"] == "align+head"
    assert untimed(raced.decision["candidates"][0]) == untimed(expected["candidates"][0])
    assert gates_of(raced.as_dict()) == gates_of(record) and raced.verdict == record["verdict"]
    assert list(raced.table()["name"]) == ["align+head"]
    assert raced.forecast["align+head"]["predicted_steps"] == expected["candidates"][0]["predicted_steps"]
    assert raced.probability == expected["probability"] and "racing align+head" in steps
    assert "recommended: align+head" in raced._repr_html_()


def untimed(row):
    return {key: value for key, value in row.items() if "hours" not in key and "seconds" not in key}


def test_the_lines_of_the_documentation_run(small_world, tmp_path, monkeypatch):
    """What a newcomer types: every block of docs/library.md in its order, in one namespace, on the small world."""
    monkeypatch.chdir(tmp_path)
    page = (Path(sk.__file__).parents[1] / "docs" / "library.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    stated = 'BASE, CANDIDATE, DATA = "tiny-sana", "dc-f16c16", "embedded"'
    ours = f'BASE, CANDIDATE, DATA = {small_world["base"]!r}, "pca-f8c4", {small_world["data"]["source"]!r}'
    assert len(blocks) == 6 and blocks[0].count(stated) == 1
    smaller = {"[:200, 0]": "[:36, 0]", "[200:400, 0]": "[36:, 0]", "len(images), 8)": "len(images), 1)"}  # of 80
    text = "\n".join(blocks).replace(stated, ours)
    for written, replaced in smaller.items():
        assert written in text
        text = text.replace(written, replaced)
    namespace = {}
    exec(compile(text, "docs/library.md", "exec"), namespace)
    assert namespace["checked"].verdict in ("pass", "fail", "inconclusive") and namespace["monitor"].alarms == []
    assert namespace["swapped"].system.name == "" and namespace["image"].size == (32, 32)
    assert namespace["comparison"].verdict == "no-drift" and namespace["plan"].kind == "vae"
    for folder in ("swapped", "exported"):
        assert sk.load_base(tmp_path / folder).image_size == 32
    names = set(re.findall(r"\bsk\.(\w+)", page))
    assert names <= set(sk.__all__) and {"plan", "swap", "validate", "race", "compare", "DriftMonitor"} <= names
