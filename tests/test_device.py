"""Both kinds of swap on a second device (tests/fake_accelerator): everything that a model computes is computed there,
nothing stays there, and the host waits once a step."""

import json
import traceback
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from sanakit.api.validation import validate
from sanakit.config import make_config
from sanakit.distributed import STOP
from sanakit.evaluation.blind import blind_held_out
from sanakit.evaluation.held_out import held_out
from sanakit.placement import Placement, choose
from sanakit.sampling import sample_euler
from sanakit.strategies import STRATEGIES
from sanakit.swap import stages as engine
from sanakit.training.batches import TrainOptions
from sanakit.training.loop import fit, new_state
from sanakit.training.monitors import make_monitors
from sanakit.training.state import at_work, park

OPTIONS = TrainOptions(max_steps=24, batch_size=8, warmup=2, ema_decay=0.9, workers=0)
LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)


def caller():
    """The innermost line of sanakit on the stack, for what is computed on the CPU."""
    frames = [frame for frame in traceback.extract_stack() if "/sanakit/" in frame.filename]
    return f"cpu: {frames[-1].filename}:{frames[-1].lineno}" if frames else "cpu"


@contextmanager
def layers_by_device():
    """How many layers of any model were called on the device, and where on the CPU."""
    calls: Counter[str] = Counter()

    def count(module, inputs):
        if isinstance(module, LAYERS) and not isinstance(module.weight, FakeTensor):  # an estimate computes nothing
            device = module.weight.device.type
            calls[device if device != "cpu" else caller()] += 1

    handle = nn.modules.module.register_module_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.fixture
def on_device(fake_device, tiny_system):
    """The tiny system, on the fake accelerator in fp32."""
    tiny_system.placement = Placement(torch.device("fakegpu", 0))
    return tiny_system


def everything(core):
    return STRATEGIES.get("finetune").parameter_groups(core)


def run(world, folder, stages, placement, *sets, stop_at=0, resume="auto"):
    def progress(label, done, total):
        if stop_at and label.startswith("training") and done == stop_at:
            STOP.number = 15

    with STOP.installed():
        swap = engine.prepare(make_config(world, list(sets)), folder, progress, placement=placement)
        validation = engine.run_stages(swap, stages, force=True, resume=resume)
    return swap, validation


def test_the_loop_waits_once_a_step_with_every_monitor_on(on_device, tiny_data, fake_device):
    state = new_state(on_device.core, everything(on_device.core), OPTIONS, placement=on_device.placement)
    section = make_config({"monitors": {"num_evaluations": 1}}).monitors
    monitors = make_monitors(section, on_device, tiny_data, (on_device, tiny_data), OPTIONS)

    def observe(step, loss, batch, predicted):
        monitors.observe(batch, predicted)

    fit(on_device, tiny_data, OPTIONS, state, until=3, after_step=observe)
    with fake_device.Trace("/sanakit/") as trace:
        fit(on_device, tiny_data, OPTIONS, state, until=11, after_step=observe)
    assert trace.syncs == 8, str(trace)
    monitors.close()


def test_training_gives_the_cpus_losses(on_device, tiny_data):
    """Apart from attention, whose kernel is another one."""
    losses = {}
    start = {k: v.clone() for k, v in on_device.core.state_dict().items()}
    for placement in (Placement(torch.device("cpu")), on_device.placement):
        system = replace(on_device, placement=placement)
        system.core.load_state_dict(start)
        state = new_state(system.core, everything(system.core), OPTIONS, placement=placement)
        kept = losses[placement.device.type] = []
        fit(
            system,
            tiny_data,
            OPTIONS,
            state,
            until=6,
            after_step=lambda step, loss, *rest, kept=kept: kept.append(loss),
        )
        park(state)
    assert losses["fakegpu"] == pytest.approx(losses["cpu"], rel=1e-4)


def test_a_state_that_waits_holds_no_device_memory_and_goes_on_as_it_was(on_device, tiny_data, fake_device):
    before = fake_device.read()["allocated"]
    placement, results = on_device.placement, []
    start = {k: v.clone() for k, v in on_device.core.state_dict().items()}
    for pauses in (False, True):
        on_device.core.load_state_dict(start)
        state = new_state(on_device.core, everything(on_device.core), OPTIONS, placement=placement)
        for until in (3, 6):
            with at_work(state):
                fit(on_device, tiny_data, OPTIONS, state, until=until)
                assert fake_device.read()["allocated"] > before + 1000
                if not pauses and until == 3:
                    fit(on_device, tiny_data, OPTIONS, state, until=6)
        assert fake_device.read()["allocated"] - before < 1000  # accelerate's own scalars
        results.append([v.clone() for v in state.ema.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_prompts_go_to_the_device_once(on_device, tiny_data, fake_device):
    bytes_of = {}
    for sigmas in ((0.5,), (0.1, 0.3, 0.5, 0.7, 0.9)):
        for measure in (held_out, blind_held_out):
            with fake_device.Trace() as trace:
                measure(on_device, tiny_data, count=32, sigmas=sigmas)
            bytes_of[measure.__name__, len(sigmas)] = trace.to_device_bytes
    prompts = on_device.text_encoder.encode(["a b", "c"])
    for steps in (2, 20):
        with fake_device.Trace() as trace:
            sample_euler(on_device, prompts, num_steps=steps)
        bytes_of["sample", steps] = trace.to_device_bytes
    assert bytes_of["held_out", 5] == bytes_of["held_out", 1]
    assert bytes_of["blind_held_out", 5] == bytes_of["blind_held_out", 1]
    assert bytes_of["sample", 20] - bytes_of["sample", 2] < 1000  # the sigmas


def test_results_are_the_cpus(on_device, tiny_data):
    cpu = replace(on_device, placement=Placement(torch.device("cpu")))
    prompts = on_device.text_encoder.encode(["a b", "c"])
    for measure in (held_out, blind_held_out):
        assert torch.allclose(measure(on_device, tiny_data).losses, measure(cpu, tiny_data).losses, rtol=1e-4)
    images = [system.vae.decode(sample_euler(system, prompts, num_steps=3)) for system in (on_device, cpu)]
    assert torch.allclose(*images, atol=1e-4)


RACES = {
    "vae": {"vae": {"name": "pca-f8c4"}},
    "text_encoder": {"text_encoder": {"name": "minilm"}},
}
STRATEGIES_OF = {
    "vae": ["reuse", "align", "align-blocks", "align+head", "lora", "finetune", "naive", "scratch"],
    "text_encoder": ["align", "align-blocks", "cross-attention", "distill", "embedding-mse", "lora", "finetune"],
}


@pytest.mark.parametrize("kind", list(RACES))
def test_component_and_race_of_every_strategy_on_the_device(kind, small_world, tmp_path, fake_device, any_target):
    """The race ends although its recommended arm was trained on the device; nothing but figures stays there."""
    small_world |= RACES[kind]
    if kind == "vae":
        small_world["vae"] = {"name": json.loads((tmp_path / "base" / "card.json").read_text())["vae"]}
    small_world["train"] |= {"strategy": "auto", "start": "auto", "start_draws": 32, "max_steps": 8}
    small_world["smoke"] |= {
        "budget_steps": 8,
        "rates": [1.0],
        "controls": True,
        "samples": 8,
        "strategies": STRATEGIES_OF[kind],
    }
    small_world["component"] = {"num_images": 16}
    before = fake_device.read()["allocated"]
    with layers_by_device() as calls:
        swap, validation = run(small_world, tmp_path / "run", ["component", "smoke"], choose("auto"))
    assert set(validation["stages"]) == {"component", "smoke"}
    raced = {row["name"] for row in validation["strategy"]["candidates"]}
    assert raced == set(STRATEGIES_OF[kind])
    assert set(calls) == {"fakegpu"} and calls["fakegpu"] > 1000, calls
    assert fake_device.read()["allocated"] - before < 10_000
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["placement"]["device"] == "fakegpu:0" and provenance["placement"]["base"] == "bf16"
    assert swap.config.train.precision == "bf16" and swap.config.train.gradient_checkpointing is False
    assert "fakegpu" not in (tmp_path / "run" / "config.yaml").read_text()


# every pair of a preset's kind of training with a precision, an average, checkpointing and a micro-batch stands in one
# of them
FULL = {
    "finetune": ("vae", "train.strategy=finetune", "train.ema_decay=0.9", "train.micro_batch=2"),
    "lora, checkpointed": ("vae", "train.strategy=lora", "train.gradient_checkpointing=true", "train.precision=fp32"),
    "gradual": ("text_encoder", "train.strategy=finetune", "train.gradual=0.5", "train.micro_batch=1"),
    "distill": ("text_encoder", "train.strategy=distill", "train.ema_decay=0.9", "train.precision=fp32"),
    "joint": ("none", "text_encoder.learning_rate=1e-4", "train.gradient_checkpointing=true", "train.ema_decay=0.9"),
    "VAE": ("tune", "train.target=vae", "train.ema_decay=0.9", "train.micro_batch=2"),
}


SLOW = ("lora, checkpointed", "gradual", "VAE")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in FULL])
def test_full_training_on_the_device(name, small_world, tmp_path, fake_device, any_target):
    kind, *sets = FULL[name]
    small_world |= RACES.get(kind, {})
    small_world["train"] |= {"max_steps": 6, "start": "align", "checkpoint_every": 3}
    small_world["smoke"] |= {"samples": 8}
    if kind == "tune":
        small_world["vae"] = {"name": "dc-f16c16"}
        small_world["base"] = "tiny-sana"
        small_world["data"] |= {"image_size": 96}
        small_world["component"] = {"num_images": 16}
    before = fake_device.read()["allocated"]
    with layers_by_device() as calls:
        swap, _ = run(small_world, tmp_path / "run", ["full"], choose("auto"), *sets)
    assert (tmp_path / "run" / ("vae" if kind == "tune" else "model") / "config.json").is_file()
    assert calls["fakegpu"] > 100
    if kind not in ("none", "tune"):  # which parameters a prompt or an image reaches is asked on the CPU, once
        assert set(calls) == {"fakegpu"}, calls
    assert fake_device.read()["allocated"] - before < 10_000
    micro = swap.config.train.micro_batch
    automatic = 1 if name == "joint" else 4  # of an encoder that is trained nothing is estimated
    assert micro == (automatic if "micro_batch" not in " ".join(sets) else int(sets[-1][-1]))


@pytest.mark.parametrize("target", ["core", "vae-decoder"])
def test_a_component_alone_is_prepared_on_a_device_that_tells_its_memory(target, small_world, tmp_path, fake_device):
    small_world |= {"base": "none", "vae": {"name": f"path:{tmp_path / 'vae'}"}}
    small_world["data"] |= {"image_size": 32}
    small_world["train"] |= {"target": target, "strategy": "auto"}
    with fake_device.present(memory=fake_device.read()["allocated"] + (1 << 30)):
        swap = engine.prepare(make_config(small_world), None, lambda *_: None, placement=choose("auto"))
    train = swap.config.train
    assert (train.micro_batch, train.gradient_checkpointing) == (4 if target == "core" else 1, False)


def test_validate_measures_a_component_alone_on_the_device(small_world, fake_device):
    from sanakit.vaes import VAES

    with fake_device.present(memory=fake_device.read()["allocated"] + (1 << 30)):
        result = validate(VAES.get("pca-f8c4").tiny(), data=small_world["data"]["source"])
    assert result.gates


@pytest.mark.slow
def test_a_run_moves_between_devices_and_goes_on_at_a_step_that_is_no_evaluation_step(
    small_world, tmp_path, fake_device
):
    """Stopped on the device after step 5, continued there bit for bit, and on the CPU as the same run."""
    small_world |= RACES["vae"]
    small_world["train"] |= {"max_steps": 9, "start": "align", "checkpoint_every": 100, "precision": "fp32"}
    small_world["monitors"] = {"num_evaluations": 3}
    fake, cpu = Placement(torch.device("fakegpu", 0)), Placement(torch.device("cpu"))
    run(small_world, tmp_path / "straight", ["full"], fake)
    for folder in ("same", "other"):
        with pytest.raises(SystemExit):
            run(small_world, tmp_path / folder, ["full"], fake, stop_at=4)  # noticed a step later
        kept = json.loads(next((tmp_path / folder / "checkpoints").glob("step-*/manifest.json")).read_text())["record"]
        assert kept["step"] == 5 and kept["step"] % 3, "between two evaluations of the monitors"
    run(small_world, tmp_path / "same", ["full"], fake)
    moved, _ = run(small_world, tmp_path / "other", ["full"], cpu)
    weights = [
        (tmp_path / f / "model" / "diffusion_pytorch_model.safetensors").read_bytes() for f in ("straight", "same")
    ]
    assert weights[0] == weights[1]
    losses = [
        [row["loss"] for row in map(json.loads, (tmp_path / folder / "metrics.jsonl").read_text().splitlines())]
        for folder in ("straight", "other")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and len(losses[0]) == 6
    assert json.loads((tmp_path / "other" / "provenance.json").read_text())["placement"]["device"] == "cpu"
    assert (
        moved.run.key
        == engine.prepare(make_config(small_world), tmp_path / "same", lambda *_: None, placement=fake).run.key
    )


@pytest.mark.slow
def test_the_base_in_half_precision_gives_the_same_loss(fake_device):
    """On the embedded base, within 0.2%: what makes bf16 the default."""
    swap = engine.prepare(make_config({}), None, lambda *_: None, placement=choose("auto"))
    base = swap.base_system
    exact = replace(base, placement=choose("auto", base="fp32"))
    data = swap.base_data[1]
    half, single = (held_out(system, data, count=32).loss for system in (base, exact))
    assert half == pytest.approx(single, rel=2e-3) and half != single
