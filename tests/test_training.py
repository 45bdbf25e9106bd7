"""The loop, checkpoints, monitors and the race on a tiny system."""

import itertools
import json
import platform
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing

from sanakit.config import Config, dump_config, make_config
from sanakit.core.dit import GROUPS, group_of, parameters_by_group
from sanakit.data.order import batch_indices
from sanakit.data.store import save_tensors
from sanakit.errors import SanakitError
from sanakit.evaluation.held_out import held_out
from sanakit.loading import load_base, load_text_encoder
from sanakit.presets import PRESETS
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.encoder_training import as_encoded_now, encoder_group, save_encoder, trainable_copy
from sanakit.swap.settings import strategy_of
from sanakit.swap.tune_vae import measured
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.training.checkpoint import KEEP, Saver, latest, load_checkpoint, save_checkpoint
from sanakit.training.loop import TrainOptions, draw_batch, fit, layer_groups, new_state
from sanakit.training.monitors import LatentMonitor
from sanakit.training.parameters import check_movement, parameter_digests
from sanakit.training.schedules import decay_start, learning_rate_at
from sanakit.training.watch import Watch

OPTIONS = TrainOptions(max_steps=6, batch_size=4, learning_rate=1e-3, warmup=1)


def all_groups(core):
    return [{"params": p} for p in parameters_by_group(core).values()]


def weights(core):
    return {k: v.clone() for k, v in core.state_dict().items()}


def test_an_epoch_visits_every_image_once_and_epochs_differ():
    first = torch.cat([batch_indices(10, 4, step, seed=0) for step in range(5)])
    assert sorted(first[:10].tolist()) == list(range(10)) == sorted(first[10:].tolist())
    assert first[:10].tolist() != first[10:].tolist()


def test_a_batch_is_a_function_of_seed_and_step(tiny_system, tiny_data):
    a, b = (draw_batch(tiny_system, tiny_data, OPTIONS, 3) for _ in range(2))
    assert torch.equal(a.noise, b.noise) and torch.equal(a.prompt.embeds, b.prompt.embeds)
    assert not torch.equal(a.noise, draw_batch(tiny_system, tiny_data, OPTIONS, 4).noise)


def test_every_parameter_has_a_group(tiny_system):
    counted = sum(p.numel() for group in parameters_by_group(tiny_system.core).values() for p in group)
    assert counted == sum(p.numel() for p in tiny_system.core.parameters())
    assert {group_of(name) for name, _ in tiny_system.core.named_parameters()} == set(GROUPS)


def test_training_lowers_the_loss_and_moves_everything(tiny_system, tiny_data):
    core, before = tiny_system.core, held_out(tiny_system, tiny_data).loss
    start = weights(core)
    options = TrainOptions(max_steps=40, batch_size=8, learning_rate=3e-3)
    fit(tiny_system, tiny_data, options, new_state(core, all_groups(core), options))
    assert held_out(tiny_system, tiny_data).loss < before
    assert all(not torch.equal(start[name], p) for name, p in core.named_parameters())


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_frozen_groups_stay_bit_equal_and_trained_ones_move(name, tiny_system, tiny_data):
    strategy, core = STRATEGIES.get(name), tiny_system.core
    groups = strategy.parameter_groups(core)
    if not groups:
        assert not any(p.requires_grad for p in core.parameters())
        return
    fit(tiny_system, tiny_data, OPTIONS, new_state(core, groups, OPTIONS), until=2)  # zero-initialised head: two steps
    start = weights(core)
    fit(tiny_system, tiny_data, OPTIONS, new_state(core, groups, OPTIONS), until=3)
    for parameter_name, parameter in core.named_parameters():
        moved = not torch.equal(start[parameter_name], parameter)
        group = "lora" if ".lora_" in parameter_name else group_of(parameter_name)
        expected = strategy.scales.get(group, 0) > 0
        assert moved == expected, parameter_name


def test_resume_is_bit_exact(tiny_system, tiny_data, tmp_path):
    core = tiny_system.core
    fresh = weights(core)
    state = fit(tiny_system, tiny_data, OPTIONS, new_state(core, all_groups(core), OPTIONS))
    straight = weights(core)

    core.load_state_dict(fresh)
    state = fit(tiny_system, tiny_data, OPTIONS, new_state(core, all_groups(core), OPTIONS), until=3)
    save_checkpoint(tmp_path, core, state, {"key": "a"})
    core.load_state_dict(fresh)
    resumed = new_state(core, all_groups(core), OPTIONS)
    load_checkpoint(latest(tmp_path), core, resumed, {"key": "a"})
    assert resumed.step == 3
    fit(tiny_system, tiny_data, OPTIONS, resumed)
    assert all(torch.equal(straight[k], v) for k, v in core.state_dict().items())


def test_damaged_and_foreign_checkpoints_are_refused(tiny_system, tmp_path):
    core = tiny_system.core
    state = new_state(core, all_groups(core), OPTIONS)
    folder = save_checkpoint(tmp_path, core, state, {"key": "a"})
    with pytest.raises(SanakitError, match="SK0505.*key is a, this run has b"):
        load_checkpoint(folder, core, state, {"key": "b"})
    blob = bytearray((folder / "core.safetensors").read_bytes())
    blob[-1] ^= 1
    (folder / "core.safetensors").write_bytes(blob)
    with pytest.raises(SanakitError, match="SK0505.*damaged"):
        load_checkpoint(folder, core, state, {"key": "a"})


def test_a_loss_that_is_not_finite_stops_before_the_step(tiny_system, tiny_data):
    core = tiny_system.core
    tiny_data.latents[:] = float("nan")
    start = weights(core)
    with pytest.raises(SanakitError, match="SK0501"):
        fit(tiny_system, tiny_data, OPTIONS, new_state(core, all_groups(core), OPTIONS))
    assert all(torch.equal(start[k], v) for k, v in core.state_dict().items())


def test_dropped_prompts_are_the_null_embedding(tiny_system, tiny_data):
    prompt = tiny_data.prompts(torch.arange(3), torch.zeros(3, dtype=torch.long))
    dropped = tiny_system.drop_prompts(prompt, torch.tensor([True, False, True]))
    assert torch.equal(dropped.embeds[0], tiny_system.null.embeds[0])
    assert torch.equal(dropped.embeds[1], prompt.embeds[1])


def observe(monitor, system, data, scale):
    for step in range(6):
        batch = draw_batch(system, data, TrainOptions(max_steps=9, batch_size=16), step)
        moved = type(batch)(batch.latents * scale, batch.noise, batch.sigmas, batch.prompt)
        monitor.observe(moved, torch.zeros_like(batch.noise))
    return monitor.report(6)


def test_monitor_speaks_of_a_wider_stream_and_is_silent_on_the_same(tiny_system, tiny_data):
    monitor = LatentMonitor(reference=[tiny_data.latents[:, 0]], num_evaluations=1)
    assert not any(r.alarm for r in observe(monitor, tiny_system, tiny_data, 1.0))
    assert any(r.alarm for r in observe(monitor, tiny_system, tiny_data, 1.5))


def test_noise_of_a_image_does_not_depend_on_how_the_batch_is_shared(tiny_system, tiny_data):
    whole = draw_batch(tiny_system, tiny_data, OPTIONS, 3)
    splits = [draw_batch(tiny_system, tiny_data, OPTIONS, 3, rows) for rows in (slice(0, 2), slice(2, 4))]
    for name in ("latents", "noise", "sigmas", "indices"):
        assert torch.equal(torch.cat([getattr(half, name) for half in splits]), getattr(whole, name))
    assert torch.equal(torch.cat([half.prompt.embeds for half in splits]), whole.prompt.embeds)


def test_micro_batches_take_the_course_of_the_whole_batch(tiny_system, tiny_data):
    core, fresh = tiny_system.core, weights(tiny_system.core)
    torch.nn.init.normal_(core.proj_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    fresh = weights(core)
    fit(tiny_system, tiny_data, OPTIONS, new_state(core, all_groups(core), OPTIONS))
    whole = weights(core)
    core.load_state_dict(fresh)
    split = replace(OPTIONS, accumulate=4)
    fit(tiny_system, tiny_data, split, new_state(core, all_groups(core), split))
    assert all(torch.allclose(v, whole[k], rtol=1e-4, atol=2e-5) for k, v in weights(core).items())
    with pytest.raises(SanakitError, match="SK0104.*4 does not divide by 1 ranks x 3"):
        new_state(core, all_groups(core), replace(OPTIONS, accumulate=3))


def test_bf16_autocast_and_checkpointing_stay_near_fp32(tiny_system, tiny_data):
    core = tiny_system.core
    torch.nn.init.normal_(core.proj_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    fresh, losses = weights(core), {}
    for name, changes in {
        "fp32": {},
        "checkpointing": {"gradient_checkpointing": True},
        "bf16": {"precision": "bf16"},
    }.items():
        core.load_state_dict(fresh)
        options, losses[name] = replace(OPTIONS, **changes), []

        def keep(step, loss, *_, name=name):
            return losses[name].append(loss)

        fit(tiny_system, tiny_data, options, new_state(core, all_groups(core), options), until=3, after_step=keep)
        core.disable_gradient_checkpointing()
    assert losses["checkpointing"] == losses["fp32"]
    assert losses["bf16"] != losses["fp32"] and losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert all(p.dtype == torch.float32 for p in core.parameters())
    if not torch.cuda.is_available():
        with pytest.raises(SanakitError, match="SK0104.*fp16 needs a GPU"):
            new_state(core, all_groups(core), replace(OPTIONS, precision="fp16"))


def test_latents_are_drawn_from_the_posterior_anew_every_step_and_the_noise_stays(tiny_system, tiny_data):
    spread = torch.full_like(tiny_data.latents, 0.25)
    drawn = replace(tiny_data, spread=spread)
    for step in (0, 1):
        plain, other = (draw_batch(tiny_system, data, OPTIONS, step) for data in (tiny_data, drawn))
        assert torch.equal(plain.noise, other.noise) and torch.equal(plain.prompt.embeds, other.prompt.embeds)
        unit = (other.latents - plain.latents) / 0.25
        assert 0.8 < unit.std() < 1.2 and abs((unit * plain.noise).mean()) < 0.2  # and it is not the noise again
    splits = [draw_batch(tiny_system, drawn, OPTIONS, 1, rows) for rows in (slice(0, 2), slice(2, 4))]
    assert torch.equal(torch.cat([half.latents for half in splits]), other.latents)


def test_the_average_moves_after_the_step_and_is_restored(tiny_system, tiny_data, tmp_path):
    core, options = tiny_system.core, replace(OPTIONS, ema_decay=0.9)
    fresh = weights(core)
    state = fit(tiny_system, tiny_data, options, new_state(core, all_groups(core), options), until=1)
    decay = min(0.9, 1 / 10)
    for name, value in core.state_dict().items():
        assert torch.allclose(state.ema[name], fresh[name].lerp(value, 1 - decay)), name
    save_checkpoint(tmp_path, core, state, {})
    other = new_state(core, all_groups(core), options)
    load_checkpoint(latest(tmp_path), core, other, {})
    assert all(torch.equal(other.ema[k], v) for k, v in state.ema.items())


def test_parameters_that_stand_still_or_should_have_are_named(tiny_system):
    core = tiny_system.core
    before = parameter_digests(core)
    for name, parameter in core.named_parameters():
        parameter.requires_grad_("patch_embed" not in name)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if name not in ("patch_embed.proj.weight", "patch_embed.proj.bias"):
                parameter.add_(1e-3)
    check_movement(core, before)
    with torch.no_grad():
        core.patch_embed.proj.bias.add_(1)
    with pytest.raises(SanakitError, match="SK0508.*1 frozen parameters moved, first patch_embed.proj.bias"):
        check_movement(core, before)
    small = core.proj_out.bias.to(torch.bfloat16)  # what pure bf16 training does to a small step
    assert torch.equal(small + torch.tensor(1e-6, dtype=torch.bfloat16) * small.sign(), small)
    with pytest.raises(SanakitError, match="SK0508.*trained parameters stand still"):
        check_movement(core, parameter_digests(core))


def test_the_schedules_by_step():
    options = TrainOptions(max_steps=30, learning_rate=1.0, warmup=2, schedule="constant-then-decay")
    rates = [learning_rate_at(step, options) for step in range(30)]
    assert rates[:2] == [0.5, 1.0] and rates[1:21] == [1.0] * 20  # the last third decays, from step 20
    np.testing.assert_allclose(rates[20:], np.arange(10, 0, -1) / 10)
    longer = replace(options, max_steps=45)
    assert rates[:21] == [
        learning_rate_at(step, longer) for step in range(21)
    ]  # so a longer run can go on from step 20
    cosine = replace(options, schedule="cosine")
    assert learning_rate_at(15, cosine) == pytest.approx(0.5) and learning_rate_at(30, cosine) == 0.0
    assert learning_rate_at(29, replace(options, schedule="constant")) == 1.0
    assert Config().train.schedule == "constant-then-decay" and decay_start("constant-then-decay", 400) == 267
    assert decay_start("cosine", 400) is None is decay_start("constant", 400)


def test_one_step_is_never_pruned(tiny_system, tmp_path):
    core, saver = tiny_system.core, Saver(tmp_path, always=2)
    state = new_state(core, all_groups(core), OPTIONS)
    for state.step in range(1, 6):
        saver.save(core, state, {})
    assert sorted(path.name[-1] for path in tmp_path.glob("step-*")) == ["2", "4", "5"] and KEEP == 2


def test_early_blocks_learn_slower(tiny_system):
    core = tiny_system.core
    groups = STRATEGIES.get("finetune").parameter_groups(core)
    split = layer_groups(core, groups, 0.5)
    scales = {id(p): group["scale"] for group in split for p in group["params"]}
    assert len(scales) == sum(len(group["params"]) for group in groups)
    first, last = (core.transformer_blocks[i].attn1.to_q.weight for i in (0, 1))
    assert scales[id(first)] == scales[id(last)] / 2 and scales[id(core.proj_out.weight)] == 1.0


def test_lora_starts_as_the_base_and_merges_into_plain_layers(tiny_system, tiny_data):
    strategy, core = STRATEGIES.get("lora"), tiny_system.core
    torch.nn.init.normal_(core.proj_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    names, before = set(core.state_dict()), held_out(tiny_system, tiny_data).loss
    groups = strategy.parameter_groups(core)
    assert held_out(tiny_system, tiny_data).loss == before
    fit(tiny_system, tiny_data, OPTIONS, new_state(core, groups, OPTIONS))
    trained = held_out(tiny_system, tiny_data).loss
    strategy.finish(core)
    assert set(core.state_dict()) == names
    assert held_out(tiny_system, tiny_data).loss == pytest.approx(trained, rel=1e-5) and trained != before


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip_through_yaml(name):
    config = PRESETS[name]()
    assert make_config(yaml.safe_load(dump_config(config))) == config
    assert strategy_of(config, {}).scales.keys() <= {*GROUPS, "lora"}


def processor() -> list[str]:
    """Family, model and stepping: two processors of one capability may round otherwise."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return [platform.machine(), *(facts.get(key, "") for key in ("cpu family", "model", "stepping"))]


def test_golden_losses(tiny_system, tiny_data):
    """A refactor must not move the course: not by a bit on the same build and processor, else by rounding only."""
    torch.nn.init.normal_(tiny_system.core.proj_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    losses = []
    state = new_state(tiny_system.core, all_groups(tiny_system.core), OPTIONS)
    fit(tiny_system, tiny_data, OPTIONS, state, after_step=lambda step, loss, *_: losses.append(loss))
    golden = json.loads(Path(__file__).with_name("golden_losses.json").read_text())
    build = [torch.__version__.split("+")[0], torch.backends.cpu.get_cpu_capability(), *processor()]
    expected = [float.fromhex(text) for text in golden["losses"]]
    assert losses == (expected if build == golden["build"] else pytest.approx(expected, rel=1e-4)), build


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_a_resume_change_no_sample(tiny_system, tiny_data, tmp_path, workers):
    core, options = tiny_system.core, replace(OPTIONS, max_steps=40, workers=workers)
    trace, prompts = [], []

    def keep(step, loss, batch, predicted):
        trace.extend(tiny_data.names[i] for i in batch.indices.tolist())
        prompts.append(batch.prompt.embeds)

    state = fit(tiny_system, tiny_data, options, new_state(core, all_groups(core), options), until=7, after_step=keep)
    save_checkpoint(tmp_path, core, state, {})
    resumed = new_state(core, all_groups(core), options)
    load_checkpoint(latest(tmp_path), core, resumed, {})
    fit(tiny_system, tiny_data, options, resumed, until=20, after_step=keep)
    straight = [draw_batch(tiny_system, tiny_data, OPTIONS, step) for step in range(20)]
    assert trace == [tiny_data.names[i] for batch in straight for i in batch.indices.tolist()]
    assert all(torch.equal(a, b.prompt.embeds) for a, b in zip(prompts, straight, strict=True))
    assert sorted(trace[:64]) == sorted(tiny_data.names)


def test_an_asynchronous_save_holds_its_own_step_while_training_goes_on(tiny_system, tiny_data, tmp_path, monkeypatch):
    core, options = tiny_system.core, replace(OPTIONS, ema_decay=0.9)
    release, written = threading.Event(), []

    def slowly(tensors, path, *rest):
        written.append(threading.current_thread())
        assert release.wait(60)
        save_tensors(tensors, path, *rest)

    monkeypatch.setattr("sanakit.training.checkpoint.save_tensors", slowly)
    state = fit(tiny_system, tiny_data, options, new_state(core, all_groups(core), options), until=2)
    at_two = {**weights(core), **{f"ema.{k}": v.clone() for k, v in state.ema.items()}}
    saver = Saver(tmp_path, asynchronous=True)
    state.history.append({"file": "a", "row": {}})
    saver.save(core, state, {})
    fit(tiny_system, tiny_data, options, state, until=4)
    state.history.append({"file": "b", "row": {}})
    assert latest(tmp_path) is None
    release.set()
    saver.close()
    assert threading.main_thread() not in written
    other = new_state(core, all_groups(core), options)
    load_checkpoint(latest(tmp_path), core, other, {})
    now = {**core.state_dict(), **{f"ema.{k}": v for k, v in other.ema.items()}}
    assert other.step == 2 and len(other.history) == 1 and all(torch.equal(now[k], v) for k, v in at_two.items())

    monkeypatch.setattr(
        "sanakit.training.checkpoint.save_tensors", lambda *a: (_ for _ in ()).throw(OSError(28, "full"))
    )
    saver = Saver(tmp_path, asynchronous=True)
    saver.save(core, state, {})
    with pytest.raises(SanakitError, match="SK0903.*full"):
        saver.close()
    assert latest(tmp_path).name == "step-00000002"


@pytest.mark.slow
def test_a_compiled_core_takes_the_eager_course_and_its_checkpoints_are_plain(tiny_system, tiny_data, tmp_path):
    if shutil.which("gcc") is None and shutil.which("g++") is None and not torch.cuda.is_available():
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    core = tiny_system.core
    torch.nn.init.normal_(core.proj_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    fresh, compiled = weights(core), replace(OPTIONS, compile=True, ema_decay=0.9)
    losses: dict[bool, list[float]] = {}
    for options in (compiled, replace(compiled, compile=False)):
        core.load_state_dict(fresh)
        kept = losses[options.compile] = []
        state = new_state(core, all_groups(core), options)
        assert hasattr(state.model, "_orig_mod") == options.compile
        fit(tiny_system, tiny_data, options, state, after_step=lambda step, loss, *_, kept=kept: kept.append(loss))
        if options.compile:
            save_checkpoint(tmp_path, core, state, {})
            moved = weights(core)
    assert losses[True] == pytest.approx(losses[False], rel=1e-4) and losses[True][0] != losses[True][-1]
    names = {name for file in latest(tmp_path).glob("*.safetensors") for name in load_file(file)}
    assert not any("_orig_mod" in name for name in names) and set(fresh) <= names
    load_checkpoint(latest(tmp_path), core, state, {})  # an eager run goes on from it
    assert all(torch.equal(moved[k], v) for k, v in core.state_dict().items()) and state.step == OPTIONS.max_steps


@pytest.mark.parametrize(("name", "package"), [("adamw-8bit", "bitsandbytes"), ("came", "pytorch_optimizer")])
def test_other_optimisers_resume_bit_exactly_and_name_their_package(name, package, tiny_system, tiny_data, tmp_path):
    core, options = tiny_system.core, replace(OPTIONS, optimizer=name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(SanakitError, match=f"SK0901.*needs the package {package.replace('_', '-')}"):
            new_state(core, all_groups(core), options)
    pytest.importorskip(package)
    fresh = weights(core)
    fit(tiny_system, tiny_data, options, new_state(core, all_groups(core), options))
    straight = weights(core)
    assert any(not torch.equal(straight[k], v) for k, v in fresh.items())
    core.load_state_dict(fresh)
    state = fit(tiny_system, tiny_data, options, new_state(core, all_groups(core), options), until=3)
    save_checkpoint(tmp_path, core, state, {})
    resumed = new_state(core, all_groups(core), options)
    load_checkpoint(latest(tmp_path), core, resumed, {})
    fit(tiny_system, tiny_data, options, resumed)
    assert all(torch.equal(straight[k], v) for k, v in core.state_dict().items())


def test_a_text_encoder_is_trained_with_its_own_rate_and_null_embedding(tiny_system, tiny_data, tmp_path):
    system, core = tiny_system, tiny_system.core
    torch.nn.init.normal_(core.proj_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    captions = [" ".join("abcdefgh"[(i + k) % 8] for k in range(2 + i % 3)) for i in range(128)]
    special = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    system.text_encoder.tokenizer.backend_tokenizer.post_processor = special  # so that the null prompt has tokens
    system.null = system.text_encoder.null()
    data = replace(tiny_data, texts=captions, captions=system.text_encoder.encode(captions))
    before, null, original = parameter_digests(system.text_encoder), system.null.embeds, system.text_encoder
    encoder = trainable_copy(original, gradient_checkpointing=True)
    frozen = {n for n, p in encoder.named_parameters() if not p.requires_grad}
    assert frozen and all("pooler" in n for n in frozen)
    system.text_encoder = encoder
    options = replace(OPTIONS, prompt_dropout=0.5, ema_decay=0.9, accumulate=2, live_captions=True)
    start = weights(core), weights(encoder)

    def run(until, state=None):
        if state is None:
            core.load_state_dict(start[0])
            encoder.load_state_dict(start[1])
            groups = [g | {"scale": 1.0} for g in all_groups(core)] + [encoder_group(encoder, 1e-4, 1e-3)]
            state = new_state(core, groups, options, encoder)
        seen = []

        def after(step, loss, batch, predicted):
            return seen.append((batch, state.optimizer.param_groups[-1]["lr"]))

        return fit(system, data, options, state, until=until, after_step=after), seen

    state, seen = run(6)
    straight = weights(state.module)
    batch, rate = seen[0]
    dropped = torch.tensor([text == "" for text in batch.texts])
    assert rate == pytest.approx(1e-4) and dropped.any() and not dropped.all()
    expected = torch.where(dropped[:, None, None], null, data.captions.embeds[_rows(data, batch)])
    assert torch.allclose(batch.prompt.embeds[dropped], expected[dropped], atol=1e-5)
    assert all((parameter_digests(encoder)[n] == d) == (n in frozen) for n, d in before.items())
    assert parameter_digests(original) == before
    assert any(k.startswith("text_encoder.") for k in state.ema)
    assert not torch.equal(as_encoded_now(system, data, 4).captions.embeds[0], data.captions.embeds[0])
    assert not torch.equal(system.null.embeds, null) and torch.equal(system.null.embeds, encoder.null().embeds)

    state, _ = run(3)
    save_checkpoint(tmp_path / "c", state.module, state, {})
    _, _ = run(1)  # elsewhere
    groups = [g | {"scale": 1.0} for g in all_groups(core)] + [encoder_group(encoder, 1e-4, 1e-3)]
    resumed = new_state(core, groups, options, encoder)
    load_checkpoint(latest(tmp_path / "c"), resumed.module, resumed, {})
    run(6, resumed)
    assert all(torch.equal(straight[k], v) for k, v in resumed.module.state_dict().items())

    encoder.eval()
    reference = save_encoder(encoder, tmp_path)
    read = load_text_encoder(reference.replace("path:./", f"path:{tmp_path}/"))
    assert torch.allclose(read.encode(["a b"]).embeds, encoder.encode(["a b"]).embeds, atol=1e-6)


def _rows(data, batch):
    where = {text: row for row, text in enumerate(data.texts)}
    return torch.tensor([where.get(text, 0) for text in batch.texts])


def test_options_without_effect_are_refused():
    for sets, message in (
        (["text_encoder.gradient_checkpointing=true"], "needs text_encoder.learning_rate"),
        (["train.target=vae", "text_encoder.learning_rate=1e-4"], "trains no text encoder"),
        (["train.target=vae", "data.aspect_buckets=true"], "leave data.aspect_buckets out"),
        (["train.report_to=[paper]"], "train.report_to.0"),
    ):
        with pytest.raises(SanakitError, match=f"SK0104.*{message}"):
            make_config({}, sets)


def test_the_rank_that_is_furthest_behind_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sanakit.training.watch.world_size", lambda: 3)

    def place(step, phase):
        return json.dumps({"step": step, "phase": phase, "host": "node-a"})

    for number, text in enumerate([place(7, 2), place(7, 0), place(7, 2)]):
        (tmp_path / f"{number}.json").write_text(text)
    watch = Watch(None, 5)
    watch.folder = tmp_path
    assert watch.verdict().startswith("rank 1 on node-a holds up 3 ranks for over 5 s: at step 7 it draws its batch")
    (tmp_path / "1.json").write_text(place(7, 2))
    assert watch.verdict().startswith("all 3 ranks stand at step 7")
    (tmp_path / "2.json").unlink()
    assert watch.verdict().startswith("rank 2 on unknown")


def test_a_swap_of_two_components_at_once_is_refused():
    with pytest.raises(
        SanakitError, match=r"SK0104.*one component, found vae.name kl-f8c4 and text_encoder.name wordllama"
    ):
        make_config({"vae": {"name": "kl-f8c4"}, "text_encoder": {"name": "wordllama"}})
    with pytest.raises(SanakitError, match=r"SK0104.*vae.scaling_factor 0.5 .*text_encoder.name wordllama"):
        make_config({"text_encoder": {"name": "wordllama"}}, ["vae.scaling_factor=0.5"])


@pytest.mark.parametrize("name", ["swap-vae", "swap-text-encoder"])
def test_a_preset_that_swaps_names_another_component_than_the_bases_own(name):
    config = PRESETS[name]()
    card = load_base(config.base).card
    assert config.candidate not in (None, card["vae"], card["text_encoder"])


def test_a_dropped_prompt_is_read_in_its_own_window_beside_prompts_with_an_instruction():
    encoder = TEXT_ENCODERS.get("gemma-2-2b-it").tiny()
    encoder.set_spec(replace(encoder.spec, instruction="describe this: ", max_tokens=8))
    whole = encoder.whole_prompts(["a cat", "two dogs"])
    both = encoder([whole[0], "", whole[1]])
    assert (both.embeds[0] - both.embeds[2]).abs().max() > 1e-3  # two prompts are not the same
    for row, prompt in enumerate([whole[0], "", whole[1]]):
        alone = encoder([prompt])
        torch.testing.assert_close(both.embeds[row], alone.embeds[0])
        assert torch.equal(both.mask[row], alone.mask[0])
    torch.testing.assert_close(both.embeds[1], encoder.null().embeds[0])
    assert encoder([whole[0], "", "x" * 20]).truncated == 1
    encoder.set_spec(replace(encoder.spec, attend_padding=True))
    torch.testing.assert_close(encoder([whole[0], ""]).embeds[1], encoder([""]).embeds[0])


def scaled(state, monkeypatch):
    """The state as fp16 has it, on a CPU: a loss scaler in the accelerator and in the optimiser."""
    from accelerate.optimizer import AcceleratedOptimizer

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    state.optimizer = AcceleratedOptimizer(state.optimizer.optimizer, scaler=scaler)
    monkeypatch.setattr(state.accelerator, "scaler", scaler)

    def unscale(optimizer):
        return scaler.unscale_(optimizer.optimizer)

    monkeypatch.setattr(state.accelerator, "unscale_gradients", unscale)
    return scaler


def test_fp16_goes_on_after_a_step_that_was_left_out_at_half_the_scale(tiny_system, tiny_data, monkeypatch):
    core, options = tiny_system.core, replace(OPTIONS, max_skipped=1)
    state = new_state(core, all_groups(core), options)
    scaler = scaled(state, monkeypatch)

    def spoilt(step, rows):
        batch = draw_batch(tiny_system, tiny_data, options, step, rows)
        return batch.map(lambda x: x * float("nan") if x.is_floating_point() and step == 2 else x)

    before = []

    def keep(step, *_):
        return before.append(weights(core)["proj_out.bias"])

    fit(tiny_system, tiny_data, options, state, draw=spoilt, after_step=keep)
    assert state.step == 6 and state.skipped == [2] and scaler.get_scale() == 512.0
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(before)]
    assert moved == [True, False, True, True, True]
    assert state.scaler["scale"] == 512.0  # of this state: the next one of this accelerator starts with its own


def test_states_that_share_an_accelerator_keep_their_own_loss_scale(tiny_system, tiny_data, monkeypatch):
    """As the arms of a race do, which take turns."""
    core = tiny_system.core
    first, second = (new_state(core, all_groups(core), OPTIONS) for _ in range(2))
    scaler = scaled(first, monkeypatch)
    second.optimizer = type(first.optimizer)(second.optimizer.optimizer, scaler=scaler)
    first.scaler, second.scaler = ({**scaler.state_dict(), "scale": scale} for scale in (8.0, 64.0))
    for until in (1, 2):
        for state, scale in ((first, 8.0), (second, 64.0)):
            fit(tiny_system, tiny_data, OPTIONS, state, until=until)
            assert state.scaler["scale"] == scale and state.scaler["_growth_tracker"] == until


def test_a_vae_and_a_text_encoder_under_training_are_measured_in_eval_mode(tiny_system, tiny_data):
    modes = []
    for part in (tiny_system.vae, tiny_system.text_encoder):
        part.train()
        part.register_module("probe", torch.nn.Identity())
    vae, encode = tiny_system.vae, tiny_system.vae._encode
    vae._encode = lambda images: modes.append(vae.training) or encode(images)
    measured(vae, torch.rand(4, 3, 32, 32) * 2 - 1)
    encoder, read = tiny_system.text_encoder, tiny_system.text_encoder._encode
    encoder._encode = lambda prompts: modes.append(encoder.training) or read(prompts)
    as_encoded_now(tiny_system, replace(tiny_data, texts=["a"] * 128), 4)
    assert len(modes) >= 4 and not any(modes) and vae.training and encoder.training
