"""Streams: the e-process and its bound, equivalence bands, monitors and what they do; CUSUM of the drift study."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from sanakit.config import Config, MonitorsSection, make_config
from sanakit.contracts import Reading
from sanakit.drift.equivalence import equivalence
from sanakit.drift.features import embedding_blocks
from sanakit.drift.sequential import EProcess, places, tied_scores
from sanakit.drift.stream import Stream, falls_on
from sanakit.errors import SanakitError
from sanakit.training.loop import TrainOptions, draw_batch, fit, new_state
from sanakit.training.monitors import MonitorRequest, Monitors, component_stream, make_monitors

STUDIES = Path(__file__).parents[1] / "experiments" / "studies"


def rows(seed, count, columns=4):
    return np.random.default_rng(seed).normal(size=(count, columns)).astype(np.float32)


def latents(seed, count=48, channels=3):
    return torch.randn(count, channels, 6, 6, generator=torch.Generator().manual_seed(seed))


def test_scores_of_ties_sum_to_zero_and_agree_with_scipy_without_ties():
    values = np.round(rows(0, 200) + 1).clip(0, 2)  # a third or more of every column is one value
    ordered = np.sort(values.T, 1)
    assert np.abs(tied_scores(*places(ordered, values), 200).sum(1)).max() < 1e-9
    smooth = rows(1, 50)
    scores = tied_scores(*places(np.sort(smooth.T, 1), smooth), 50)
    np.testing.assert_allclose(scores.T, stats.norm.ppf(stats.rankdata(smooth, axis=0) / 51))


@pytest.mark.parametrize("tied", [False, True])
def test_an_e_process_keeps_its_bound_however_often_it_is_looked_at(tied):
    make = (lambda seed, n: np.floor(rows(seed, n)).clip(-1, 0)) if tied else rows
    highest, last = [], []
    for seed in range(120):
        process = EProcess(make(seed, 60))
        for evaluate in range(12):
            evidence = process.add(make(1000 + 50 * seed + evaluate, 12))
        highest.append(process.highest)
        last.append(evidence.value)
    assert np.mean(np.array(highest) >= 20) <= 0.05
    assert np.mean(last) <= 1 + 3 * np.std(last) / np.sqrt(len(last))


def test_an_e_process_names_column_block_and_effect():
    process = EProcess(rows(0, 200))
    for evaluate in range(12):
        block = rows(evaluate + 1, 40)
        block[:, 2] += 1.0 if evaluate >= 6 else 0.0
        evidence = process.add(block)
    assert process.highest >= 20 and evidence.column == 2 and evidence.since == 6
    assert 0.4 < evidence.effect < 1.1 and evidence.ci_low > 0


def load_cusum():
    """The study's module; no command of the package uses it."""
    spec = importlib.util.spec_from_file_location("drift_cusum", STUDIES / "drift_cusum.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.Cusum


def test_cusum_runs_about_its_length_and_is_quick_after_a_shift():
    Cusum = load_cusum()
    lengths, threshold = [], Cusum(rows(0, 300), 20, 40.0).threshold
    for seed in range(30):
        cusum = Cusum(rows(seed, 300), 20, 40.0, threshold=threshold)
        blocks = (rows(10_000 + 500 * seed + k, 20) for k in range(200))
        lengths.append(next((k for k, block in enumerate(blocks, 1) if cusum.add(block)[0]), 200))
    assert 20 < np.mean(lengths) < 80
    cusum = Cusum(rows(0, 300), 20, 40.0)
    block = rows(5, 20)
    block[:, 1] += 1.5
    alarm, column, _ = cusum.add(block)
    assert column == 1 and (alarm or cusum.add(block)[0])


def test_equivalence_bands():
    reference = rows(0, 400)
    assert equivalence(reference, rows(1, 400) + 0.05, 0.5).verdict == "inside"
    outside = equivalence(reference, rows(1, 400) * [1, 1, 3, 1], 0.5)
    assert outside.verdict == "outside" and outside.where == "channel 0 spread (spread)"
    assert equivalence(reference, rows(1, 8), 0.3).verdict == "undecided"
    assert equivalence(reference, rows(1, 2), 0.3).verdict == "undecided"


def test_a_stream_names_channel_effect_step_and_cause_and_resumes_exactly():
    stream = Stream("latents", latents(0, 300))
    whole = {}
    for step in range(1, 9):
        values = latents(step)
        values[:, 1] += 0.6 if step >= 5 else 0.0
        if step == 7:
            stream.observe(values)
            resumed = Stream("latents", latents(0, 300))
            resumed.restore({k: v.clone() for k, v in stream.tensors("s").items()}, "s")
            stream = resumed
            whole[step] = stream.report(step)
            continue
        stream.observe(values)
        whole[step] = stream.report(step)
    last = whole[8][0]
    assert not any(r.alarm for step in range(1, 5) for r in whole[step])
    assert last.alarm and "channel 1" in last.where and "since step 5" in last.where and "cause" in last.where
    assert last.value > 0.3 and last.p_value <= 0.05
    assert stream.since == 4


def test_a_stream_counts_what_is_not_finite_and_survives_it():
    stream = Stream("latents", latents(0, 100))
    values = latents(1)
    values[2, 1, 0, :3] = float("inf")
    stream.observe(values)
    bad, sound = stream.report(4)
    assert bad.alarm and bad.value == 3 and "channel 1 (3), since step 1; likely cause" in bad.where
    assert stream.since == 0
    assert not sound.alarm


def test_constant_channels_empty_looks_and_short_references():
    flat = latents(0, 100)
    flat[:, 1] = 0.5
    stream = Stream("latents", flat)
    assert stream.report(1) == []
    same = latents(1)
    same[:, 1] = 0.5
    stream.observe(same)
    assert not stream.report(2)[0].alarm
    with pytest.raises(SanakitError, match="SK0704"):
        Stream("latents", latents(0, 1))
    stream.observe(latents(1, channels=4))
    with pytest.raises(SanakitError, match="SK0702.*differ in features"):
        stream.report(3)


def test_a_moving_stream_alarms_outside_its_band_only():
    shared = {"still": False, "blocks": ("mean", "log-sd"), "num_evaluations": 1}
    for scale, alarm in ((1.02, False), (3.0, True)):
        stream = Stream("components", latents(0, 200), **shared)
        stream.observe(latents(1, 100) * scale)
        reported = stream.report(5)[0]
        assert reported.alarm == alarm and reported.threshold == 0.5
    stream = Stream("components", latents(0, 200), where="VAE", **shared)
    reported = {}
    for step, scale in ((5, 1.0), (10, 3.0), (15, 3.0), (20, 1.0)):
        stream.observe(latents(step, 100) * scale)
        resumed = Stream("components", latents(0, 200), where="VAE", **shared)
        resumed.restore(stream.tensors("s"), "s")
        stream = resumed
        reported[step] = stream.report(step)[0]
        if step == 15:
            assert stream.since == 5 and all(
                part in reported[15].where for part in ("VAE: channel", "since step 10", "cause")
            )
    assert [r.alarm for r in reported.values()] == [False, True, True, False]
    texts = Stream("embeddings", torch.randn(64, 5, 8), torch.ones(64, 5), **shared)
    texts.observe(torch.randn(40, 7, 8), torch.ones(40, 7))
    assert texts.report(1)


def monitored(system, data, **actions):
    options = TrainOptions(max_steps=16, batch_size=32, warmup=0, learning_rate=1e-5)
    section = MonitorsSection(num_evaluations=4, **actions)
    return make_monitors(section, system, data, (system, data), options), options


def observe(monitors, system, data, options, steps, change=lambda batch: batch):
    for step in steps:
        batch = change(draw_batch(system, data, options, step))
        system.core.train()
        with torch.no_grad():
            system.velocity(batch.latents, batch.sigmas, batch.prompt)
        monitors.observe(batch, batch.noise - batch.latents)


def test_every_place_is_watched_and_clean_training_is_silent(tiny_system, tiny_data):
    monitors, options = monitored(tiny_system, tiny_data)
    observe(monitors, tiny_system, tiny_data, options, range(4))
    readings = monitors.report(4)
    assert {r.name for r in readings} >= {"latents", "embeddings", "adapters", "activations", "clean-estimate-spread"}
    assert {r.where.split(":")[0] for r in readings if r.name == "adapters"} == {
        "patch embedding",
        "caption projection",
    }
    assert not [r for r in readings if r.alarm and r.name in ("latents", "embeddings")]
    assert monitors.act(readings) is None
    monitors.close()


def test_a_long_run_looks_at_about_128_rows_of_every_stream(tiny_system, tiny_data):
    options = TrainOptions(max_steps=200, batch_size=32, warmup=0, learning_rate=1e-5)
    section = MonitorsSection(num_evaluations=4)
    monitors = make_monitors(section, tiny_system, tiny_data, (tiny_system, tiny_data), options)
    observe(monitors, tiny_system, tiny_data, options, range(50))
    streams = {"latents": monitors.latent.stream, "embeddings": monitors.prompts, **monitors.tapped}
    kept = {name: sum(len(values) for values, _ in stream.kept) for name, stream in streams.items()}
    assert len(kept) == 6 and all(100 <= rows <= 160 for rows in kept.values()), kept
    assert {r.name for r in monitors.report(50)} >= {"latents", "embeddings", "adapters", "activations"}
    monitors.close()


def test_off_is_not_watched(tiny_system, tiny_data):
    names = ("embeddings", "adapters", "activations", "generated", "latents")
    monitors, options = monitored(tiny_system, tiny_data, **dict.fromkeys(names, "off"))
    observe(monitors, tiny_system, tiny_data, options, range(2))
    assert {r.name for r in monitors.report(2)} == {"clean-estimate-spread"}


@pytest.mark.parametrize("action", ["log", "warn", "lower-rate", "roll-back", "stop"])
def test_actions(tiny_system, tiny_data, action, capsys):
    monitors, options = monitored(tiny_system, tiny_data, latents=action)

    def brighter(b):
        return type(b)(b.latents + 3, b.noise, b.sigmas, b.prompt)

    observe(monitors, tiny_system, tiny_data, options, range(4), brighter)
    readings = monitors.report(4)
    assert [r for r in readings if r.name == "latents" and r.alarm]
    request = monitors.act(readings)
    said = capsys.readouterr().err
    assert ("likely cause" in said) == (action != "log")
    assert monitors.factor == (0.5 if action == "lower-rate" else 1.0)
    assert (request.action if request else None) == (action if action in ("roll-back", "stop") else None)
    assert request is None or request.since == 0
    other, _ = monitored(tiny_system, tiny_data)
    other.restore(monitors.tensors())
    assert other.factor == monitors.factor


@pytest.mark.parametrize("action", ["off", "log", "lower-rate", "roll-back", "stop"])
def test_a_part_in_training_has_a_band_and_an_action_of_its_own(action, capsys):
    section = MonitorsSection(num_evaluations=2, components=action, bands={"components": 1.5})
    component = component_stream(section, "VAE", 1, latents(0, 200))
    assert (component is None) == (action == "off")
    monitors = Monitors(section, component=component)
    for step, scale in ((1, 1.05), (2, 20.0)) if component else ():
        component.observe(latents(step, 100) * scale)
        readings = monitors.report(step)
        assert [(r.alarm, r.threshold) for r in readings] == [(step == 2, 1.5)]
        request = monitors.act(readings)
        assert (request is not None) == (step == 2 and action in ("roll-back", "stop"))
        assert request is None or request.since == 1
    assert monitors.factor == (0.5 if action == "lower-rate" else 1.0)
    said = capsys.readouterr().err
    assert all(part in said for part in ("VAE: channel", "since step 2", "likely cause")) == (
        action not in ("off", "log")
    )


def test_a_request_leaves_the_loop(tiny_system, tiny_data):
    groups = [{"params": list(tiny_system.core.parameters())}]
    options = TrainOptions(max_steps=4, batch_size=4)

    def ask(step, loss, batch, predicted):
        raise MonitorRequest("stop", Reading(name="latents", value=1.0, step=step), 0)

    with pytest.raises(MonitorRequest):
        fit(tiny_system, tiny_data, options, new_state(tiny_system.core, groups, options), after_step=ask)


def test_the_way_back_is_the_newest_checkpoint_from_before_the_drift(tmp_path):
    from sanakit.swap.resume import good_checkpoint

    alarm = Reading(name="latents", value=1.0, step=12)
    for step in (3, 6, 9):
        (tmp_path / f"step-{step:08d}").mkdir()
    for step in (3, 6):
        manifest = {"record": {"facts": {"seed": 1}, "step": step}}
        (tmp_path / f"step-{step:08d}" / "manifest.json").write_text(json.dumps(manifest))  # 9 was cut off
    assert good_checkpoint(tmp_path, MonitorRequest("roll-back", alarm, 9), {"seed": 1}).name == "step-00000006"
    for action, since in (("roll-back", 2), ("stop", 9)):
        with pytest.raises(SanakitError, match="SK0511"):
            good_checkpoint(tmp_path, MonitorRequest(action, alarm, since), {"seed": 1})
    with pytest.raises(SanakitError, match="SK0511"):
        good_checkpoint(tmp_path, MonitorRequest("roll-back", alarm, 9), {"seed": 2})  # of another course


def test_configuration_refuses_other_actions():
    assert Config().monitors.latents == "warn"
    with pytest.raises(SanakitError, match="SK0104"):
        make_config({}, ["monitors.latents=explode"])


def test_a_stream_keeps_the_features_of_its_reference_and_not_the_reference():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, 6, 5, generator=generator)
    mask = torch.rand(40, 6, generator=generator) < 0.7
    mask[:, 0] = True
    stream = Stream("embeddings", values, mask, blocks=("mean", "norms"))
    whole = embedding_blocks(values, mask)
    assert stream.reference == [] and stream.mask is None
    expected = torch.cat([whole["mean"], whole["norms"]], 1).numpy()
    assert stream.base.shape == (40, 8) and np.allclose(stream.base, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [8, 100, 128, 256, 375])
def test_two_buckets_in_turns_are_no_drift(steps):
    """A clean stream in aspect buckets whose images differ: every bucket is kept as often as it comes."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 8, 12), (4, 12, 8)]
    images = [torch.randn(600, *shape, generator=generator) + 0.3 * i for i, shape in enumerate(shapes)]
    stream = Stream("latents", [part[:200] for part in images], num_evaluations=8, steps=steps, grouped=True)
    kept = [0, 0]
    for step in range(1, 8 * steps + 1):
        bucket = step % 2
        kept[bucket] += stream.wanted
        stream.observe(images[bucket][torch.randint(200, 600, (16,), generator=generator)])
        if not step % steps:
            assert not any(reading.alarm for reading in stream.report(step)), step
    assert abs(kept[0] - kept[1]) <= 0.1 * sum(kept) and sum(kept) >= 8 * min(steps, 120)


@pytest.mark.parametrize("stride", [1, 2, 3, 16, 31])
def test_kept_steps_are_even_and_in_no_rhythm(stride):
    chosen = [step for step in range(1, 64 * stride + 1) if falls_on(step, stride)]
    assert len(chosen) == pytest.approx(64, abs=2)
    for period in (2, 3, 4, 5):
        counts = np.bincount([step % period for step in chosen], minlength=period)
        assert counts.min() >= 0.6 * len(chosen) / period, (period, counts)
