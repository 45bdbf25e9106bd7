"""Statistics on known truths, the comparison, snapshots, and the command on real latents."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sanakit.drift import DRIFT, latent_features
from sanakit.drift.channel_moments import ChannelMoments
from sanakit.drift.compare import KEYS, compare
from sanakit.drift.files import compare_files, data_of
from sanakit.drift.page import write_page
from sanakit.drift.read import read_samples
from sanakit.drift.sample import sample_embeddings, sample_latents
from sanakit.drift.snapshot import write_snapshot
from sanakit.errors import SanakitError

COLUMNS = [name for name in DRIFT.names() if name not in ("spectrum-kl", "correlation-max", "outlier-images")]


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


def test_features_are_one_row_a_image():
    features = latent_features(latents(0, 5, 3))
    assert features.shape == (5, 6)
    torch.testing.assert_close(features[:, :3], latents(0, 5, 3).mean((2, 3)))


def test_moments_merge_to_those_of_one_pass():
    whole, values = latents(0), latents(0)
    merged = ChannelMoments.of(values[:37]).merge(ChannelMoments.of(values[37:]))
    once = ChannelMoments.of(whole)
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
    comparison = compare({"latents": sample_latents(latents(0))}, {"latents": sample_latents(change(latents(1)))})
    assert comparison.verdict == verdict
    alarms = [r for r in comparison.readings if r.alarm]
    assert bool(alarms) == (verdict == "drift")
    assert not alarms or any(where in r.where for r in alarms)


RADIUS = torch.hypot(torch.fft.fftfreq(8)[:, None] * 8, torch.fft.fftfreq(8)[None] * 8).round()
FINE, COARSE = RADIUS > 3, (RADIUS > 0) & (RADIUS <= 3)
TILT = torch.ones(8, 8).masked_fill(FINE, 0.8)
TILT[COARSE] = ((COARSE.sum() + 0.36 * FINE.sum()) / COARSE.sum()) ** 0.5  # the spread stays as it is
GAIN, OFFSET = torch.linspace(0.5, 2, 4).reshape(4, 1, 1), torch.linspace(-1, 1, 4).reshape(4, 1, 1)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda x: x * 2.4, "times as wide: another scaling factor"),
        (lambda x: x * 0.8, "times as wide: images with less contrast or detail"),
        (lambda x: x * torch.tensor([1, 1, -1, 1]).reshape(4, 1, 1), "sign of channel 2 is turned"),
        (lambda x: x[:, [0, 3, 2, 1]], "3 stands for 1, 1 stands for 3"),
        (lambda x: x + torch.tensor([0, 2.0, 0, 0]).reshape(4, 1, 1), "channel 1 alone: its mean moved by +"),
        (lambda x: torch.fft.ifft2(torch.fft.fft2(x) * TILT).real, "high frequencies hold 0."),
        (lambda x: x * GAIN + OFFSET, "a scale and a mean of its own"),
        (lambda x: torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.abs() * 3, x.flip(1) - 2), None),
    ],
    ids=["scale", "contrast", "sign", "order", "channel", "detail", "statistics", "no single one"],
)
def test_a_likely_cause_is_named_where_undoing_it_explains_what_moved(change, cause):
    uneven = torch.tensor([0.6, 1.4, 0.9, 2]).reshape(4, 1, 1)

    def draw(seed):
        return latents(seed, 300) * uneven + latents(seed + 50, 300)[:, :, :1, :1] + uneven

    torch.manual_seed(0)
    comparison = compare({"latents": sample_latents(draw(0))}, {"latents": sample_latents(change(draw(1)))})
    named = [r for r in comparison.readings if r.name == "likely-cause"]
    assert comparison.verdict == "drift" and len(named) == (cause is not None)
    if cause:
        assert cause in named[0].title and named[0].where == "latents" and not named[0].alarm and named[0].value > 0.5


def test_few_samples_are_inconclusive_and_say_how_many_are_needed():
    comparison = compare({"latents": sample_latents(latents(0, 8))}, {"latents": sample_latents(latents(1))})
    assert comparison.verdict == "inconclusive"
    assert "32 needed" in comparison.readings[-1].title


def test_values_that_are_not_finite_alarm_and_are_counted():
    broken = latents(1)
    broken[3, 2, 0, :2] = float("nan")
    comparison = compare({"latents": sample_latents(latents(0))}, {"latents": sample_latents(broken)})
    row = next(r for r in comparison.readings if r.name == "non-finite")
    assert comparison.verdict == "drift" and row.value == 2 and "channel 2" in row.where


def test_other_channels_are_refused():
    with pytest.raises(SanakitError, match="SK0702"):
        compare({"latents": sample_latents(latents(0))}, {"latents": sample_latents(latents(0, channels=8))})


def test_padding_of_embeddings_is_not_seen():
    embeds, mask = torch.randn(64, 6, 8), torch.arange(6) < torch.randint(2, 6, (64, 1))
    padded = embeds.masked_fill(~mask[..., None], 1e3)
    first, second = sample_embeddings(embeds, mask), sample_embeddings(padded, mask)
    assert all(np.array_equal(first.blocks[k], second.blocks[k]) for k in first.blocks)
    for value in (float("nan"), 0.5, -1.0):
        with pytest.raises(SanakitError, match="SK0701.*mask holds other values than 1 .keep. and 0"):
            sample_embeddings(embeds, torch.where(mask, 1.0, value))


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
    document = json.loads(result.stdout)
    assert result.returncode == 1, result.stderr
    assert set(document) == {"verdict", "readings"} and all(set(r) == set(KEYS) for r in document["readings"])
    page = (tmp_path / "d.html").read_text()
    assert "<script" not in page and "Content-Security-Policy" in page and "channel" in page
    snapshot = next(tmp_path.glob("snapshot-*.safetensors"))
    assert drift(snapshot, "b.safetensors", cwd=tmp_path).returncode == 0
    refused = drift("a.safetensors", "nothing.safetensors", cwd=tmp_path)
    assert refused.returncode == 2 and "error[SK0701]" in refused.stderr and "Traceback" not in refused.stderr


def test_python_has_the_comparison_of_files_and_its_page(tmp_path):
    for name, values in (("a", latents(0, 48)), ("b", latents(1, 48) + 1)):
        save_file({"latents": values}, tmp_path / f"{name}.safetensors")
    first, second, page = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "files.html"
    comparison = compare_files(first, second, html=page, snapshot=tmp_path / "b.snapshot.safetensors")
    assert comparison.verdict == "drift" and str(first) in page.read_text()
    sides = [{"latents": sample_latents(values)} for values in (latents(0, 48), latents(1, 48) + 1)]
    text = write_page(compare(*sides), *sides, tmp_path / "memory.html").read_text()
    assert text.count("<svg") == page.read_text().count("<svg") >= 3 and "carries neither images nor captions" in text
    (tmp_path / "validation.json").write_text("{}")
    assert data_of(tmp_path) == tmp_path / "b.snapshot.safetensors"  # the folder is a run now
    (tmp_path / "b.snapshot.safetensors").unlink()
    with pytest.raises(SanakitError, match="SK0701.*holds no"):
        compare_files(first, tmp_path)


def test_smallest_steps_are_those_of_what_is_not_flat():
    from sanakit.drift.features import latent_blocks

    edge = torch.zeros(2, 1, 8, 8)
    edge[:, :, :, 4:] = 1.0
    edge[1] += 0.01 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    sharp, soft = latent_blocks(edge)["grain"][:, 0].tolist()
    assert sharp == pytest.approx(0.0, abs=1e-4) and soft < -3


def test_one_blank_frame_among_many_is_an_outlier():
    current = latents(1, 256)
    current[7] = 0.3
    current[2, 0, 0, 0] = float("nan")  # set aside; the others keep their numbers
    comparison = compare({"latents": sample_latents(latents(0, 256))}, {"latents": sample_latents(current)})
    outlier = next(r for r in comparison.readings if r.name == "outlier-images")
    assert outlier.alarm and outlier.where == "row 7"


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_sample_end_in_words(count):
    if not count:
        with pytest.raises(SanakitError, match="SK0704"):
            sample_latents(latents(0, 0))
        return
    comparison = compare({"latents": sample_latents(latents(0, 1))}, {"latents": sample_latents(latents(1, 1))})
    assert comparison.verdict == "inconclusive"


def test_constant_channels_are_no_drift_and_other_normalisations_are_refused():
    first, second = latents(0), latents(1)
    first[:, 2] = second[:, 2] = 1.0
    assert compare({"latents": sample_latents(first)}, {"latents": sample_latents(second)}).verdict == "no-drift"
    with pytest.raises(SanakitError, match="differ in normalisation"):
        compare({"latents": sample_latents(first)}, {"latents": sample_latents(second, normalisation="raw")})


def test_the_page_shows_what_the_sides_carry_and_says_what_they_do_not(tmp_path):
    from sanakit.drift.evidence import evidence
    from sanakit.drift.shown import Shown, as_labels, shown_rows
    from sanakit.reporting.drift import write_drift_report

    frames = torch.randint(0, 256, (160, 60, 80, 3), dtype=torch.uint8)
    half = {"images": frames[:100], "labels": as_labels([f"image é {i}" for i in range(100)])}
    (tmp_path / "a").mkdir()
    save_file({"latents": latents(0)[:100]} | half, tmp_path / "a" / "0.safetensors")
    save_file({"embeds": torch.zeros(5, 2, 3), "mask": torch.ones(5, 2)}, tmp_path / "a" / "1.safetensors")
    save_file({"latents": latents(0)[100:], "images": frames[100:]}, tmp_path / "a" / "2.safetensors")
    first, second = read_samples(tmp_path / "a")["latents"], sample_latents(latents(1) + 1)
    side_rows = shown_rows(tmp_path / "a", "latents", [3, 120, 500])
    assert set(side_rows) == {3, 120} and side_rows[3].label == "image é 3" and not side_rows[120].label
    assert np.array_equal(side_rows[120].image, frames[120])

    snapshot = write_snapshot(
        {"latents": first}, tmp_path, carry=lambda kind, rows: shown_rows(tmp_path / "a", kind, rows)
    )
    kept = shown_rows(snapshot, "latents", range(160))
    assert len(kept) == 160 and all(s.image.shape == (36, 48, 3) for s in kept.values())
    assert read_samples(snapshot)["latents"].count == 160

    shown = evidence(first, second)
    rows = [row for row, _ in shown["farthest"]["reference"]]
    carried = {"latents": {"reference": shown_rows(snapshot, "latents", rows)}}
    comparison = compare({"latents": first}, {"latents": second}).as_dict()
    moments = {"latents": {"reference": {"mean": [0.0], "std": [1.0]}, "current": {"mean": [1.0], "std": [1.0]}}}

    def write(carried):
        return write_drift_report(
            comparison, moments, {"latents": shown}, carried, "a", "b", tmp_path / "d.html"
        ).read_text()

    page = write(carried)
    assert page.count("data:image/png") == 8 and "what moved" in page and "<script" not in page
    assert "carries neither images nor captions" in page  # the other side
    named = {row: Shown(label="a <b>") for row in rows}
    page = write({"latents": {"reference": named, "current": named}})
    assert "a &lt;b&gt;" in page and "carries names alone" in page and "data:image" not in page
    assert evidence(first, sample_latents(latents(0, channels=6)))["effects"] == {}
    for wrong in (frames.float(), frames[:4], frames[..., 0]):
        save_file({"latents": latents(0), "images": wrong.contiguous()}, tmp_path / "f.safetensors")
        with pytest.raises(SanakitError, match="SK0701.*expected uint8.*of 160 rows"):
            shown_rows(tmp_path / "f.safetensors", "latents", [7])


def test_shards_of_two_encoders_are_no_one_side(tmp_path):
    for name in "ab":
        save_file({"latents": latents(0)}, tmp_path / f"{name}.safetensors", metadata={"vae": name})
    with pytest.raises(SanakitError, match="SK0702.*differ in vae: a and b"):
        read_samples(tmp_path)
