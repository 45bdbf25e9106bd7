"""Drift of fine detail: rings of frequencies, what a comparison and a stream see of noise, blur,
rounding and resampling."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import fft, ndimage, stats

from sanakit.drift import DRIFT
from sanakit.drift.compare import STRUCTURED, compare
from sanakit.drift.features import block_names, latent_blocks
from sanakit.drift.read import read_samples
from sanakit.drift.sample import sample_embeddings, sample_latents
from sanakit.drift.snapshot import write_snapshot
from sanakit.drift.spectra import octave_rings, ring_blocks
from sanakit.drift.stream import Stream
from sanakit.errors import SanakitError
from sanakit.training.loop import Batch
from sanakit.training.monitors import LatentMonitor

DETAIL = ("middle", "fine", "corner")


def averaged(seed, count, channels=12, side=10):
    """Student t values with 3 degrees of freedom, averaged over neighbours: smooth, with heavy tails."""
    values = np.random.default_rng(seed).standard_t(3, (count, channels, side, side))
    return ndimage.uniform_filter(values, (0, 0, 3, 3), mode="wrap") / 0.57


def smooth(seed, count, channels=4, side=12):
    values = np.random.default_rng(seed).normal(size=(count, channels, side + 8, side + 8))
    return ndimage.gaussian_filter(values, (0, 0, 0.8, 0.8))[..., 4:-4, 4:-4] / 0.35


def noisy(values, strength):
    return values + strength * np.random.default_rng(9).normal(size=values.shape)


def blurred(values):
    return ndimage.gaussian_filter(values, (0, 0, 0.4, 0.4), mode="nearest")


def moved(values):
    """By an eighth of a pixel, linear interpolation."""
    return ndimage.shift(values, (0, 0, 0.125, 0.125), order=1, mode="nearest")


def tensor(values):
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def compared(reference, current):
    return compare({"latents": sample_latents(tensor(reference))}, {"latents": sample_latents(tensor(current))})


def test_noise_of_a_tenth_on_smooth_latents_with_heavy_tails_is_drift():
    reference, current = averaged(0, 320), noisy(averaged(1, 320), 0.1)
    powers = [np.log(np.abs(fft.fft2(x)) ** 2)[..., 4:7, 4:7].mean((1, 2, 3)) for x in (reference, current)]
    assert stats.ttest_ind(*powers, equal_var=False).pvalue < 1e-20
    comparison = compared(reference, current)
    assert comparison.verdict == "drift"
    ranks = next(r for r in comparison.readings if r.name == "rank-max")
    assert ranks.alarm and "corner of the spectrum" in ranks.where and ranks.value > 0.5
    cause = next(r for r in comparison.readings if r.name == "likely-cause")
    assert "noise was added (about 0.1 of a channel's spread)" in cause.title
    assert compared(reference, averaged(1, 320)).verdict == "no-drift"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda x: noisy(x, 0.05), "noise was added"),
        (blurred, "blur, resampling"),
        (moved, "blur, resampling"),
        (lambda x: np.round(x / 0.2) * 0.2, "values lie on a grid: quantisation"),
    ],
    ids=["noise", "blur", "resampling", "quantisation"],
)
def test_changed_detail_is_drift_and_its_cause_is_named(change, cause):
    comparison = compared(smooth(0, 128), change(smooth(1, 128)))
    assert comparison.verdict == "drift"
    assert any(r.name == "likely-cause" and cause in r.title for r in comparison.readings), comparison.readings


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda x: noisy(x, 0.15), "fine detail: high frequencies hold"),
        (blurred, "blur, resampling"),
        (lambda x: np.round(x / 0.2) * 0.2, "fine detail: values lie on a grid"),
        (lambda x: x + 0.6, "its mean moved by +0.61 sd"),
    ],
    ids=["noise", "blur", "quantisation", "shift"],
)
def test_what_happened_to_one_channel_is_said_of_it(change, cause):
    current = smooth(1, 320, 8)
    current[:, 3] = change(current[:, 3:4])[:, 0]
    comparison = compared(smooth(0, 320, 8), current)
    told = [r.title for r in comparison.readings if r.name == "likely-cause"]
    assert told and told[0].startswith("channel 3 alone") and cause in told[0], told


def test_weak_noise_on_channels_that_are_alike_is_no_other_order():
    comparison = compared(averaged(10, 128, 8), noisy(averaged(11, 128, 8), 0.06))
    assert comparison.verdict == "drift"
    assert not any("another order" in r.title for r in comparison.readings)


def test_latents_that_are_huge_are_drift_and_no_overflow():
    assert compared(averaged(10, 64, 8), np.tanh(averaged(11, 64, 8)) * 1e38).verdict == "drift"


@pytest.mark.parametrize("rows", [(32, 32), (32, 96)], ids=str)
def test_clean_sides_alarm_no_more_often_than_the_level(rows):
    alarms = 0
    for seed in range(6):
        for draw in (
            averaged,
            smooth,
            lambda s, n, c, side: np.random.default_rng(s).standard_t(2, (n, c, side, side)),
        ):
            first, second = (draw(100 * seed + k, n, 3, 8) for k, n in enumerate(rows))
            alarms += compared(first, second).verdict == "drift"
    assert alarms <= 3  # 18 draws at .05: more than 3 in 1.1%


def test_the_largest_t_keeps_its_level_on_heavy_tails_and_sides_of_different_size():
    generator = np.random.default_rng(0)
    draws = [[np.exp(generator.normal(size=(rows, 8))) for rows in (32, 320)] for _ in range(100)]
    assert sum(DRIFT.get("welch-max")(*sides, 0.05).alarm for sides in draws) <= 10  # 18 by the t distribution


def test_a_wave_is_in_its_ring_alone_and_a_ramp_has_no_fine_detail():
    place = torch.arange(16) + 0.5

    def wave(across, down):
        return (torch.pi * across * place / 16).cos()[None, :] * (torch.pi * down * place / 16).cos()[:, None]

    waves = torch.stack([wave(*pair) for pair in ((5, 3), (10, 6), (14, 13))])[:, None]
    blocks = latent_blocks(waves)
    levels = torch.stack([blocks[name][:, 0] for name in DETAIL], 1)
    floor = np.log(1e-5)
    assert (levels.argmax(1) == torch.arange(3)).all()
    torch.testing.assert_close(levels[~torch.eye(3, dtype=torch.bool)], torch.full((6,), floor), atol=0.01, rtol=0)
    torch.testing.assert_close(blocks["rings"][:, :3], levels)
    torch.testing.assert_close(blocks["rings"][:, 3:], levels + 2 * blocks["log-sd"])
    ramp = latent_blocks((place[None, :] * place[:, None])[None, None].repeat(1, 2, 1, 1))
    assert (ramp["corner"] < floor + 0.1).all()  # a Fourier transform, which joins opposite edges, reads -4.6
    sizes = [len(ring) for ring in octave_rings(16, 16)]
    assert sizes == [41, 156, 42]


@pytest.mark.parametrize("shape", [(64, 64, 64), (4, 8, 8), (3, 5, 9), (1, 2, 2), (2, 1, 8)], ids=str)
def test_rings_are_few_whatever_the_size_and_every_column_has_a_name(shape):
    blocks = latent_blocks(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
    for name, values in blocks.items():
        assert values.isfinite().all() and len(block_names(name, values.shape[1], shape[0])) == values.shape[1], name
    watched = sum(blocks[name].shape[1] for name in STRUCTURED if name in blocks)
    assert watched == 9 * shape[0] + 6
    assert 0 < blocks["power"].shape[1] <= 45


def test_images_without_contrast_have_finite_rings():
    flat = torch.zeros(3, 2, 8, 8)
    blocks = ring_blocks(flat, torch.full((3, 2), 1e-6))
    assert all(values.isfinite().all() and (values.std(0) == 0).all() for values in blocks.values())


def test_the_divergence_of_spectra_sees_a_weak_ring_beside_a_strong_one():
    generator = np.random.default_rng(0)
    strength = np.array([8.0, 6.0, 4.0, 0.0, -4.0, -8.0])  # log power: the last ring holds a ten millionth
    reference, current = (strength + generator.normal(size=(2, 64, 6))).astype(np.float32)
    current[:, 5] += 1.2
    names = [f"ring {k}" for k in range(6)]
    reading = DRIFT.get("spectrum-kl")(reference, current, 0.05, names=names)
    assert reading.p_value <= 0.01 and reading.where == "ring 5" and reading.value > 0.03
    assert (
        DRIFT.get("spectrum-kl")(reference, reference[::-1] + 3, 0.05, names=names).p_value > 0.5
    )  # a scale is no shape


def test_a_stream_sees_noise_at_the_look_where_it_begins():
    stream = Stream("latents", tensor(averaged(0, 256)))
    alarms = {}
    for step in range(1, 6):
        stream.observe(tensor(noisy(averaged(10 + step, 64), 0.1 if step >= 3 else 0.0)))
        alarms[step] = stream.report(step)[-1]
    assert [alarms[step].alarm for step in range(1, 6)] == [False, False, True, True, True]
    assert "corner of the spectrum" in alarms[5].where and "since step 3" in alarms[5].where


def test_the_monitor_of_latents_sees_noise():
    monitor = LatentMonitor(tensor(averaged(0, 256)), num_evaluations=4)
    for step in (1, 2):
        latents = tensor(noisy(averaged(20 + step, 64), 0.15 * (step - 1)))
        batch = Batch(latents, torch.randn_like(latents), torch.full((64,), 0.5), None)
        monitor.observe(batch, batch.noise - batch.latents)
        readings = [r for r in monitor.report(step) if r.name == "latents"]
        assert [r.alarm for r in readings] == [step == 2]


def test_shapes_of_a_stream_may_differ():
    def draw(seed):
        return [tensor(averaged(seed, 48, 3, 8)), tensor(averaged(seed + 1, 48, 3, 10)[..., :8, :])]

    stream = Stream("latents", draw(0))
    for values in draw(2):
        stream.observe(values)
    assert not stream.report(1)[0].alarm


def as_format(path, target, version):
    with safe_open(path, "pt") as handle:
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118  a handle is no mapping
        save_file(tensors, target, metadata=handle.metadata() | {"format": version})


def test_a_snapshot_of_other_features_is_refused_by_name(tmp_path):
    latents = {"latents": sample_latents(tensor(smooth(0, 40)))}
    path = write_snapshot(latents, tmp_path / "new.safetensors")
    assert compare(latents, read_samples(path)).verdict == "no-drift"
    for version, cause in (("sanakit-drift-1", "before the features"), ("sanakit-drift-9", "Another version")):
        as_format(path, tmp_path / "other.safetensors", version)
        with pytest.raises(SanakitError, match=f"SK0701.*{version}, this version reads sanakit-drift-2") as error:
            read_samples(tmp_path / "other.safetensors")
        assert cause in error.value.cause and "anew" in error.value.fix
    texts = {"embeddings": sample_embeddings(torch.randn(40, 3, 4), torch.ones(40, 3))}
    as_format(write_snapshot(texts, tmp_path / "texts.safetensors"), tmp_path / "old.safetensors", "sanakit-drift-1")
    assert (
        compare(texts, read_samples(tmp_path / "old.safetensors")).verdict == "no-drift"
    )  # their features are the same


def test_evidence_of_other_features_in_a_checkpoint_is_left_out_and_said():
    reference = tensor(smooth(0, 64))
    stream = Stream("latents", reference)
    stream.observe(tensor(smooth(1, 64)))
    stream.report(4)
    saved = stream.tensors("s")
    saved["s.pool"], saved["s.sums"] = saved["s.pool"][:-5], saved["s.sums"][:, :-5]
    resumed = Stream("latents", reference)
    resumed.restore(saved, "s")
    resumed.observe(tensor(smooth(2, 64)))
    said, reading = resumed.report(8)
    assert "of 37 features, those of this version are 42; the test begins again" in said.title and not said.alarm
    assert not reading.alarm and len(resumed.process.sums) == 1
    resumed.observe(tensor(smooth(3, 64)))
    assert len(resumed.report(12)) == 1
