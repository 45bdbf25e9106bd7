"""Latents of one VAE as another's: exact where a linear map is, refused where it explains too little."""

import json
import sys

import pytest
import torch

from sanakit import cli
from sanakit.alignment.translate_cache import fit_translation, require_explained
from sanakit.alignment.translation import explained, solve_translation
from sanakit.contracts import LatentSpec, LatentStats
from sanakit.data import load_images
from sanakit.data.cache import latent_job, to_images
from sanakit.data.rows import Rows
from sanakit.errors import SanakitError
from sanakit.inventory import entries
from sanakit.loading import load_vae
from sanakit.vaes.diffusers_vae import wrapper_named
from sanakit.vaes.pca import PCAVAE
from sanakit.vaes.translated import TranslatedVAE, grid_factors


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(256, 3, 8, 8, generator=generator), (16, 16), mode="bilinear")
    return (smooth + 0.2 * torch.rand(256, 3, 16, 16, generator=generator)).clamp(0, 1.2).div(0.6).sub(1).clamp(-1, 1)


def fitted(images, ratio, channels):
    return PCAVAE.fit(images.add(1).mul(127.5).byte(), ratio, channels)


@pytest.mark.parametrize(("ratio", "other"), [(4, 4), (2, 4), (4, 2)], ids=["same grid", "coarser", "finer"])
def test_a_map_that_is_linear_is_recovered_across_grids(images, ratio, other):
    source, target = fitted(images, ratio, 3 * ratio**2), fitted(images, other, 8)  # the source loses nothing
    target.set_stats(LatentStats(mean=tuple(range(8)), std=(3.0,) * 8))
    raw = source.encode_raw(images), target.encode_raw(images)
    latent_map = solve_translation(source, target, *(r[:240] for r in raw))
    quality = explained(latent_map, target, *(r[240:] for r in raw))
    assert quality.low > 0.99 and quality.low <= quality.r2 <= quality.high and quality.images == 16
    assert (latent_map(raw[0][240:]) - raw[1][240:]).std() < 0.1 * raw[1].std()


def test_what_the_source_has_lost_is_not_explained(images):
    source, target = fitted(images, 4, 2), fitted(images, 4, 40)
    raw = source.encode_raw(images), target.encode_raw(images)
    latent_map = solve_translation(source, target, *(r[:240] for r in raw))
    assert explained(latent_map, target, *(r[240:] for r in raw)).r2 < 0.5


def test_where_nothing_varies_nothing_is_explained(images):
    """Rounding noise of constant images says nothing of the map."""
    source, target = fitted(images, 4, 4), fitted(images, 4, 6)
    plain = torch.full((64, 3, 16, 16), 0.3)
    raw = source.encode_raw(plain), target.encode_raw(plain)
    quality = explained(solve_translation(source, target, *(r[:48] for r in raw)), target, *(r[48:] for r in raw))
    assert (quality.r2, quality.low, quality.high, quality.images) == (0, 0, 0, 16)


def test_grids_without_common_places_are_refused():
    specs = [LatentSpec(latent_channels=4, spatial_compression_ratio=ratio) for ratio in (14, 16)]
    with pytest.raises(SanakitError, match="SK0219.*14 px apart.*16 px"):
        grid_factors(*specs)


def test_a_translated_vae_reads_back_and_encodes_by_its_parts(images, tmp_path):
    source, target = fitted(images, 2, 6), fitted(images, 4, 8)
    latent_map = solve_translation(source, target, source.encode_raw(images), target.encode_raw(images))
    vae = TranslatedVAE(source, latent_map, target)
    vae.save(tmp_path / "vae")
    again = load_vae(f"path:{tmp_path / 'vae'}")
    assert isinstance(again, wrapper_named("TranslatedAutoencoder", {})) and again.fingerprint() == vae.fingerprint()
    torch.testing.assert_close(again.encode_raw(images[:4]), latent_map(source.encode_raw(images[:4])))
    torch.testing.assert_close(again.decode(torch.zeros(1, 8, 4, 4)), target.decode(torch.zeros(1, 8, 4, 4)))
    vae.set_stats(LatentStats(mean=(0.5,), std=(4.0,)))  # instead of the target's
    vae.save(tmp_path / "scaled")
    scaled = load_vae(f"path:{tmp_path / 'scaled'}")
    assert scaled.stats == vae.stats != again.stats and scaled.fingerprint() == vae.fingerprint()
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | {"down": 1}))
    with pytest.raises(SanakitError, match="SK0107"):
        load_vae(f"path:{tmp_path / 'vae'}")


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sanakit", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_command_fills_an_entry_that_a_run_finds_and_checks(small_world, tmp_path, call):
    data, cache = small_world["data"]["source"], tmp_path / "latents"
    source, target = f"path:{tmp_path / 'vae'}", f"path:{tmp_path / 'target'}"
    fine = load_vae(source)
    twin = PCAVAE(fine.model, fine.spec, LatentStats(mean=(1.0,), std=(2.0,)))  # another scale of the same latents
    twin.save(tmp_path / "target")
    assert call("encode", "--vae", source, "--data", data, "--image-size", 32, "--out", cache, "--mirror")[0] == 0
    told = ("translate", "--from", source, "--to", target, cache, "--data", data, "--num-images", 64, "--json")
    preview = tmp_path / "preview.png"
    code, out, err = call(*told, "--base", small_world["base"], "--preview", preview)
    assert code == 0, err
    row = json.loads(out)
    assert row["r2"] > 0.999 and row["latents"] == 160 and row["held_out_images"] == 16 and preview.is_file()
    assert abs(row["psnr_translated"] - row["psnr_encoded"]) < 0.1 and row["encode_per_second"] > 0
    assert row["hours_saved"] < row["encode_hours"]
    dataset = load_images(data)
    job = latent_job(load_vae(row["vae"]), dataset, 32, mirror=True)
    rows = job.run(cache, must_exist=True)[1]["raw_latents"]  # found, and checked against its own encoding
    views = to_images(dataset.pixels(32))
    torch.testing.assert_close(rows[:][:, 1], fine.encode_raw(views.flip(-1)), atol=0.01, rtol=0.01)


def test_below_the_stated_r2_nothing_is_written(small_world, tmp_path, call):
    """Noise: what four of 192 components keep says little of four others."""
    data, cache = small_world["data"]["source"], tmp_path / "latents"
    source, target = f"path:{tmp_path / 'vae'}", f"path:{tmp_path / 'target'}"
    generator = torch.Generator().manual_seed(9)
    PCAVAE.fit(torch.randint(256, (32, 3, 32, 32), generator=generator, dtype=torch.uint8), 8, 4).save(
        tmp_path / "target"
    )
    call("encode", "--vae", source, "--data", data, "--image-size", 32, "--out", cache)
    before = entries(cache)
    told = ("translate", "--from", source, "--to", target, cache, "--data", data, "--num-images", 64)
    code, out, err = call(*told)
    assert code == 1 and "error[SK0218]" in err and "16 held-out images), at least 0.9 expected" in err
    assert "R2 " in out and entries(cache) == before and not list(cache.glob("vae-*"))
    code, _, err = call("translate", "--from", target, "--to", source, cache, "--data", data)
    assert code == 2 and "holds no squares of" in err and "latents of any VAE: 1" in err
    code, _, err = call(*told, "--preview", tmp_path / "p.png")
    assert code == 2 and "--preview FILE and --base NAME go together" in err


def test_the_sample_must_be_large_enough(images, small_world):
    vae, dataset = fitted(images, 4, 4), load_images(small_world["data"]["source"]).subset(range(20))
    cached = Rows([torch.zeros(20, 1, 4, 8, 8)], torch.arange(20))
    with pytest.raises(SanakitError, match="SK0403.*20 images"):
        fit_translation(vae, vae, dataset, cached, 32)
    result = fit_translation(vae, vae, load_images(small_world["data"]["source"]), zeros(80), 32, num_images=80)
    with pytest.raises(SanakitError, match="SK0218"):
        require_explained(result)


def zeros(count):
    return Rows([torch.zeros(count, 1, 4, 8, 8)], torch.arange(count))
