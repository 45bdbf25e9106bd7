"""Monitors in other people's loops: an alarm on a planted shift, none on clean data, no waits between evaluations."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

import sanakit
from sanakit.errors import SanakitError
from sanakit.integrations.accelerate import AccelerateWatch
from sanakit.integrations.lightning import DriftCallback, batches_of
from sanakit.integrations.watch import Watch, metrics_of
from sanakit.text_encoders import PromptEmbeds

EXAMPLES = Path(__file__).parent.parent / "experiments" / "examples"
STEPS = 64


def latents(seed, count=16):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def planted(values, step):
    return values + 0.8 * torch.tensor([0.0, 1, 0])[:, None, None] if step > STEPS // 2 else values


def run_of(watch, change=lambda values, step: values, first=1, last=STEPS):
    for step in range(first, last + 1):
        watch(latents=change(latents(step), step))
    return watch


def quiet(readings, step):
    pass


@pytest.mark.parametrize("reference", [None, latents(0, 320)], ids=["its own beginning", "given"])
def test_a_planted_shift_alarms_and_clean_data_do_not(reference):
    clean = run_of(Watch(steps=STEPS, report=quiet, latents=reference))
    assert clean.alarms == [] and clean.verdict == "no-drift" and clean.done == STEPS
    drifted = run_of(Watch(steps=STEPS, report=quiet, latents=reference), planted)
    assert drifted.verdict == "drift" and drifted.alarms[0].step > STEPS // 2
    assert "channel 1" in drifted.alarms[0].where and "likely cause" in drifted.alarms[0].where


@pytest.mark.parametrize("grouped", [False, True])
def test_batches_of_several_shapes_make_a_reference_of_their_own(grouped):
    watch = Watch(steps=64, grouped=grouped, report=quiet)
    for step in range(64):
        side = (4, 6) if step % 2 else (6, 4)
        watch(latents=torch.randn(16, 3, *side, generator=torch.Generator().manual_seed(step)))
        tokens = 5 + step % 3
        prompts = torch.randn(16, tokens, 8, generator=torch.Generator().manual_seed(step))
        watch.update(embeddings=(prompts, torch.ones(16, tokens)))
    assert set(watch.monitors) == {"latents", "embeddings"} and watch.verdict == "no-drift"
    again = Watch(steps=64, grouped=grouped, report=quiet)
    again.load_state_dict(watch.state_dict())
    assert again.verdict == "no-drift" and again.done == 64


def test_an_alarm_is_a_warning_by_default():
    watch = Watch(steps=STEPS)
    with pytest.warns(UserWarning, match=r"step (40|48|56|64): latents: .*channel 1"):
        run_of(watch, planted)


def test_prompts_and_the_output_of_a_module_are_streams_too():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(8, 8).train()
    watch = Watch(steps=16, num_evaluations=4, report=quiet)
    handle = watch.attach(layer)
    for step in range(1, 17):
        values = torch.randn(32, 5, 8, generator=generator)
        mask = torch.ones(32, 5, dtype=torch.bool)
        watch.update(embeddings=PromptEmbeds(values, mask) if step % 2 else (values, mask))
        with torch.no_grad():
            layer(values * 100)  # an evaluation of the loop's own does not count
        layer(values * (1 if step < 12 else 3))
        watch.advance()
    assert set(watch.monitors) == {"embeddings", "activations"}
    assert {reading.name for reading in watch.alarms} == {"activations"} and watch.alarms[0].step >= 12
    handle.remove()
    layer(values)
    assert not watch.monitors["activations"].stream.kept


def test_a_watch_goes_on_from_its_state_exactly(tmp_path):
    whole = run_of(Watch(steps=STEPS, report=quiet), planted)
    for stop in (5, 44):  # while the reference is collected, and after an alarm
        torch.save(run_of(Watch(steps=STEPS, report=quiet), planted, last=stop).state_dict(), tmp_path / "watch.pt")
        resumed = Watch(steps=STEPS, report=quiet)
        resumed.load_state_dict(torch.load(tmp_path / "watch.pt", weights_only=True))
        assert run_of(resumed, planted, first=stop + 1).alarms == whole.alarms


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: Watch(steps=0), "SK0104.*steps is 0"),
        (lambda: Watch(steps=8, latent=None), "SK0104.*no stream of kind 'latent'.*did you mean latents"),
        (lambda: Watch(steps=8)(latens=latents(0)), "SK0104.*did you mean latents"),
        (lambda: Watch(steps=8)(embeddings=torch.zeros(4, 5, 8)), "SK0701.*without a mask"),
        (lambda: Watch(steps=8, latents=latents(0, 64))(latents=latents(0)[0]), "SK0701.*expected .N, C, h, w"),
        (lambda: Watch(steps=8)(latents="x.safetensors"), "SK0701.*latents is a str"),
    ],
)
def test_what_cannot_be_watched_is_refused(call, told):
    with pytest.raises(SanakitError, match=told):
        call()


def test_nothing_waits_between_evaluations(fake_device):
    """Counted on the fake accelerator, while a reference is collected and after."""
    device = torch.device("fakegpu", 0)
    watch, batch, mask = Watch(steps=64, report=quiet), latents(1).to(device), torch.ones(16, 5, device=device)
    tokens, layer = torch.randn(16, 5, 8).to(device), nn.Identity().train()
    watch.attach(layer)
    waits = []
    for step in range(1, 33):
        with fake_device.Trace("/sanakit/") as trace:
            watch.update(latents=batch, embeddings=(tokens, mask))
            layer(tokens)
            watch.advance()
        if step % watch.every:
            waits.append(trace.syncs)
    assert len(waits) == 28 and sum(waits) <= 1, waits
    assert trace.syncs > 0, "an evaluation reads from the device"


def test_readings_go_to_the_trackers_of_accelerate(tmp_path, caplog):
    accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path, cpu=True)
    accelerator.init_trackers("watched")
    watch = AccelerateWatch(accelerator, steps=STEPS)
    with caplog.at_level("WARNING", logger="sanakit"):
        run_of(watch, planted, last=44)
    assert "step 40: latents: largest shift" in caplog.text and "channel 1" in caplog.text
    accelerator.save_state(str(tmp_path / "state"))
    again = AccelerateWatch(Accelerator(cpu=True), steps=STEPS, checkpointed=False)
    watch.done, watch.monitors = 0, {}
    accelerator.load_state(str(tmp_path / "state"))
    assert watch.done == 44 and watch.alarms[0].step == 40
    again.load_state_dict(watch.state_dict())
    assert again.alarms == watch.alarms
    accelerator.end_training()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "watched")).Reload()
    values = {event.step: event.value for event in events.Scalars("drift/latents/alarm")}
    assert values[32] == 0 and values[40] == 1 and "drift/latents/p_value" in events.Tags()["scalars"]


def test_metrics_are_plain_numbers_and_a_broken_value_does_not_hide_the_shift():
    watch = Watch(steps=8, num_evaluations=1, report=quiet, latents=latents(0, 64))
    for step in range(1, 9):
        watch(latents=latents(step).where(torch.arange(16)[:, None, None, None] > 0, torch.nan))
    readings = watch.monitors["latents"].alarms
    assert metrics_of(readings)["drift/latents/not finite"] > 0
    assert all(type(value) is float for value in metrics_of(readings).values())


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)


def trained(callback, change, *, steps=STEPS, first=1, module=None):
    """The hooks in Lightning's order, with a stand-in for its trainer."""
    logged = []
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.append((step, metrics)))
    facts = {"estimated_stepping_batches": steps // 2, "accumulate_grad_batches": 2, "global_step": 0}
    trainer = SimpleNamespace(**facts, loggers=[logger], should_stop=False)
    module = module or Module()
    callback.on_train_start(trainer, module)
    for step in range(first, steps + 1):
        trainer.global_step = step
        module.train()
        module.layer(torch.randn(32, 5, 8, generator=torch.Generator().manual_seed(step)) * (4 if step > 48 else 1))
        callback.on_train_batch_end(trainer, module, None, {"latents": change(latents(step), step)}, step)
        if trainer.should_stop:
            break
    callback.on_train_end(trainer, module)
    return trainer, logged


def values_of(batch, outputs):
    return {"latents": batch["latents"]}


def test_the_lightning_callback_stops_on_a_planted_shift_and_not_on_clean_data():
    clean = DriftCallback(values_of, on_alarm="stop")
    trainer, logged = trained(clean, lambda values, step: values)
    assert not trainer.should_stop and clean.alarms == [] and trainer.global_step == STEPS
    assert [step for step, _ in logged] == list(range(16, STEPS + 1, 8)) and "drift/latents/p_value" in logged[0][1]
    stopped = DriftCallback(values_of, on_alarm="stop")
    with pytest.warns(UserWarning, match="step 40: latents.*channel 1"):
        trainer, _ = trained(stopped, planted)
    assert trainer.should_stop and trainer.global_step == 40


def test_the_lightning_callback_watches_a_module_and_goes_on_from_a_checkpoint():
    torch.manual_seed(0)
    module = Module()
    callback = DriftCallback(module="layer", on_alarm="none")
    trained(callback, lambda values, step: values, module=module)
    assert callback.alarms and callback.alarms[0].step == 56 and callback.alarms[0].name == "activations"
    assert not module.layer._forward_hooks
    begun = DriftCallback(module="layer", on_alarm="none", steps=STEPS)
    trained(begun, lambda values, step: values, steps=40, module=module)
    resumed = DriftCallback(module="layer", on_alarm="none")
    resumed.load_state_dict(begun.state_dict())
    trained(resumed, lambda values, step: values, first=41, module=module)
    assert resumed.alarms == callback.alarms


def test_a_callback_that_cannot_work_is_refused():
    with pytest.raises(SanakitError, match="SK0104.*neither values nor module"):
        DriftCallback()
    with pytest.raises(SanakitError, match="SK0104.*on_alarm is 'abort'"):
        DriftCallback(values_of, on_alarm="abort")
    with pytest.raises(SanakitError, match="SK0104.*has inf batches.*(\n.*)*DriftCallback.steps"):
        batches_of(SimpleNamespace(estimated_stepping_batches=float("inf")))
    with pytest.raises(SanakitError, match="SK0104.*no module 'layers'"):
        trained(DriftCallback(module="layers"), lambda values, step: values)


def test_nothing_of_the_integrations_is_imported_by_the_library():
    package = Path(sanakit.__file__).parent
    files = [path for path in package.rglob("*.py") if path.parent.name != "integrations"]
    assert len(files) > 100 and not [path for path in files if "sanakit.integrations" in path.read_text()]


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("lightning"), reason="Lightning is not installed")
@pytest.mark.filterwarnings("ignore")
def test_lightning_itself_stops_on_a_planted_shift_and_not_on_clean_data():
    example = load_example("lightning_drift")
    assert example.train("tiny-sana", "openclipart", 64, plant=False).alarms == []
    callback = example.train("tiny-sana", "openclipart", 64, plant=True)
    assert callback.alarms and callback.alarms[0].step > 32


@pytest.fixture(scope="module")
def lora_world(tmp_path_factory):
    """A stock Sana pipeline of tiny parts and 64 images with captions."""
    from test_interop import dc_ae, gemma, system_of, write

    folder = tmp_path_factory.mktemp("lora")
    assert write(system_of(dc_ae(), gemma(), image_size=512), folder / "pipe") == []
    (folder / "images").mkdir()
    noise = np.random.default_rng(0).integers(256, size=(64, 8, 8, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).resize((64, 64)).save(folder / "images" / f"{number}.png")
        (folder / "images" / f"{number}.txt").write_text(f"image {number}")
    return folder


@pytest.mark.slow
def test_five_lines_watch_a_lora_script(lora_world, tmp_path, monkeypatch, capsys):
    """The example trains, writes its LoRA, alarms where the images change, and not where they do not."""
    example = load_example("sana_lora")
    assert (EXAMPLES / "sana_lora.py").read_text().count("  # watch\n") <= 5
    options = ["--pipeline", str(lora_world / "pipe"), "--images", str(lora_world / "images"), "--image-size", "64"]
    options += ["--steps", "32", "--batch-size", "16", "--rank", "2"]
    clean = example.train(example.parse([*options, "--out", str(tmp_path / "clean")]))
    assert clean.verdict == "no-drift" and set(clean.monitors) == {"latents", "embeddings"}
    assert (tmp_path / "clean" / "pytorch_lora_weights.safetensors").is_file()
    assert "no-drift, last loss" in capsys.readouterr().out
    read, calls = example.read_image, []

    def darker_later(path, size):
        calls.append(path)
        return read(path, size) - (0.8 if len(calls) > 16 * 16 else 0)

    monkeypatch.setattr(example, "read_image", darker_later)
    drifted = example.train(example.parse([*options, "--out", str(tmp_path / "drifted")]))
    assert {reading.name for reading in drifted.alarms} == {"latents"} and drifted.alarms[0].step > 16


@pytest.mark.slow
def test_the_swap_example_runs_on_a_small_world(small_world, tmp_path, monkeypatch, capsys):
    card = json.loads((Path(small_world["base"][5:]) / "card.json").read_text())
    example = load_example("swap_a_vae")
    given = ["--base", small_world["base"], "--vae", card["vae"], "--data", small_world["data"]["source"]]
    watch = example.main([*given, "--steps", "8", "--out", str(tmp_path / "swapped")])
    assert watch.done == 8 and (tmp_path / "swapped" / "sample.png").is_file()
    assert "after 8 steps:" in capsys.readouterr().out
