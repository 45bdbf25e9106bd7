"""Statistics on known truths, the comparison, snapshots, and the command on real latents."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sanakit.drift import DRIFT, latent_features
from sanakit.drift.compare import KEYS, compare
from sanakit.drift.moments import Moments
from sanakit.drift.sample import read_samples, sample_embeddings, sample_latents, write_snapshot
from sanakit.errors import SanakitError

COLUMNS = [name for name in DRIFT.names() if name not in ("spectrum-kl", "correlation-max", "outlier-pictures")]


def latents(seed, count=160, channels=4):
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


def drift(*arguments, cwd):
    command = [sys.executable, "-c", "from sanakit.cli import main; main()", "drift", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("name", COLUMNS)
def test_statistics_find_a_shift(name):
    reference, current = np.random.default_rng(0).normal(size=(2, 128, 8))
    current[:, 3] += 1.5
    assert DRIFT.get(name)(reference, current, 0.05).p_value < 0.05


@pytest.mark.parametrize("name", COLUMNS)
def test_statistics_are_silent_without_one(name):
    generator = np.random.default_rng(0)
    assert sum(DRIFT.get(name)(*generator.normal(size=(2, 64, 6)), 0.02).alarm for _ in range(10)) <= 2


def test_features_are_one_row_a_picture():
    found = latent_features(latents(0, 5, 3))
    assert found.shape == (5, 6)
    torch.testing.assert_close(found[:, :3], latents(0, 5, 3).mean((2, 3)))


def test_moments_merge_to_those_of_one_pass():
    whole, values = latents(0), latents(0)
    merged = Moments.of(values[:37]).merge(Moments.of(values[37:]))
    once = Moments.of(whole)
    for part in ("mean", "covariance", "skewness", "kurtosis"):
        torch.testing.assert_close(getattr(merged, part), getattr(once, part))


@pytest.mark.parametrize(
    ("change", "verdict", "where"),
    [
        (lambda x: x, "no-drift", ""),
        (lambda x: x * torch.tensor([1, 1, 1.2, 1]).reshape(4, 1, 1), "drift", "channel 2"),
        (lambda x: x + torch.tensor([0, 0.1, 0, 0]).reshape(4, 1, 1), "drift", "channel 1"),
    ],
    ids=["clean", "scale", "shift"],
)
def test_verdicts_and_where(change, verdict, where):
    found = compare({"latents": sample_latents(latents(0))}, {"latents": sample_latents(change(latents(1)))})
    assert found.verdict == verdict
    alarms = [r for r in found.readings if r.alarm]
    assert bool(alarms) == (verdict == "drift")
    assert not alarms or any(where in r.where for r in alarms)


def test_few_samples_are_inconclusive_and_say_how_many_are_needed():
    found = compare({"latents": sample_latents(latents(0, 8))}, {"latents": sample_latents(latents(1))})
    assert found.verdict == "inconclusive"
    assert "32 needed" in found.readings[-1].title


def test_values_that_are_not_finite_alarm_and_are_counted():
    broken = latents(1)
    broken[3, 2, 0, :2] = float("nan")
    found = compare({"latents": sample_latents(latents(0))}, {"latents": sample_latents(broken)})
    row = next(r for r in found.readings if r.name == "non-finite")
    assert found.verdict == "drift" and row.value == 2 and "channel 2" in row.where


def test_other_channels_are_refused():
    with pytest.raises(SanakitError, match="SK0702"):
        compare({"latents": sample_latents(latents(0))}, {"latents": sample_latents(latents(0, channels=8))})


def test_padding_of_embeddings_is_not_seen():
    embeds, mask = torch.randn(64, 6, 8), torch.arange(6) < torch.randint(2, 6, (64, 1))
    padded = embeds.masked_fill(~mask[..., None], 1e3)
    first, second = sample_embeddings(embeds, mask), sample_embeddings(padded, mask)
    assert all(np.array_equal(first.blocks[k], second.blocks[k]) for k in first.blocks)


def test_a_snapshot_reads_back_and_damage_is_named(tmp_path):
    samples = {"latents": sample_latents(latents(0))}
    path = write_snapshot(samples, tmp_path)
    assert compare(samples, read_samples(path)).verdict == "no-drift"
    assert write_snapshot(samples, tmp_path) == path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(SanakitError, match="SK0701"):
        read_samples(path)


def test_the_command_prints_one_document_and_its_exit_code(tmp_path):
    save_file({"latents": latents(0)}, tmp_path / "a.safetensors")
    save_file({"latents": latents(1) * 1.3}, tmp_path / "b.safetensors")
    result = drift("a.safetensors", "b.safetensors", "--json", "--html", "d.html", "--snapshot", ".", cwd=tmp_path)
    found = json.loads(result.stdout)
    assert result.returncode == 1, result.stderr
    assert set(found) == {"verdict", "readings"} and all(set(r) == set(KEYS) for r in found["readings"])
    page = (tmp_path / "d.html").read_text()
    assert "<script" not in page and "Content-Security-Policy" in page and "channel" in page
    snapshot = next(tmp_path.glob("snapshot-*.safetensors"))
    assert drift(snapshot, "b.safetensors", cwd=tmp_path).returncode == 0
    refused = drift("a.safetensors", "nothing.safetensors", cwd=tmp_path)
    assert refused.returncode == 2 and "error[SK0701]" in refused.stderr and "Traceback" not in refused.stderr
