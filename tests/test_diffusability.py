"""The panel against constructions whose order is known."""

import numpy as np
import pytest
import torch

from sanakit.checks.diffusability import (
    compare_panels,
    equivariance,
    high_frequency_share,
    kid,
    neighbour_consistency,
    panel,
    radial_power,
    slerp,
    spectrum_kl,
    viv,
)
from sanakit.errors import SanakitError
from sanakit.evaluation.metrics.distances import kernel_distance
from sanakit.evaluation.perceptual import features, perceptual_distance
from sanakit.swap.tune_vae import equivariance_errors
from sanakit.vaes import VAES


def test_viv_falls_with_the_rank_of_the_latents():
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(256, 4, 4, 4, generator=generator)
    low = (torch.randn(256, 3, generator=generator) @ torch.randn(3, 64, generator=generator)).reshape(256, 4, 4, 4)
    assert viv(low) < 0.6 * viv(full)


def test_slerp_keeps_the_length_and_halves_the_angle():
    first, second = torch.eye(2)[:1], torch.eye(2)[1:]
    torch.testing.assert_close(slerp(first, second), torch.full((1, 2), 0.5**0.5))
    torch.testing.assert_close(slerp(first, first), first)


def test_white_latents_are_further_from_images_than_small_images_are(openclipart_images):
    small = torch.nn.functional.interpolate(openclipart_images, size=(12, 12), mode="area")
    white = torch.randn(32, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    assert spectrum_kl(small, openclipart_images) < 1e-9 < spectrum_kl(white, openclipart_images)
    assert np.isclose(radial_power(white).sum(), 1)


def test_patch_averages_are_equivariant_to_mirroring(openclipart_images):
    class Average(VAES.get("pca-f8c4")):
        def _encode(self, images):
            return torch.nn.functional.avg_pool2d(images, 8).repeat(1, 2, 1, 1)[:, :4]

    vae = Average.tiny()
    assert equivariance(vae, openclipart_images, lambda t: t.flip(-1)) == pytest.approx(0, abs=1e-10)
    assert equivariance(vae, openclipart_images[..., :88], lambda t: t[..., :44]) is None


def test_panel_of_a_real_vae(openclipart_images):
    vae = VAES.get("pca-f16c16").load()
    rows = panel(vae, openclipart_images, vae.encode(openclipart_images))
    assert {r["better"] for r in rows} == {"lower", "higher"}
    assert all(np.isfinite(r["value"]) and r["worth"] for r in rows)


@pytest.mark.parametrize("variance", [0.2, 1.0, 5.0])
def test_viv_of_a_gaussian_is_the_integral_of_its_velocitys_conditional_variance(variance):
    """Var(noise - z | (1 - t) z + t noise) = l / ((1 - t)^2 l + t^2), over t: checked by quadrature and by sampling."""
    t = (np.arange(100_000) + 0.5) / 100_000
    integral = (variance / ((1 - t) ** 2 * variance + t**2)).mean()
    assert np.pi / 2 * variance**0.5 == pytest.approx(integral, rel=1e-3)
    z, noise = np.random.default_rng(0).standard_normal((2, 400_000)) * np.array([[variance**0.5], [1]])
    for level in (0.3, 0.8):
        mixed, velocity = (1 - level) * z + level * noise, noise - z
        left = velocity.var() - np.cov(velocity, mixed)[0, 1] ** 2 / mixed.var()
        assert left == pytest.approx(variance / ((1 - level) ** 2 * variance + level**2), rel=0.02)


def test_viv_of_one_cluster_is_the_formula():
    latents = torch.randn(20, 1, 2, 2, generator=torch.Generator().manual_seed(0))  # too few for two clusters
    rows = ((latents - latents.mean()) / latents.std()).flatten(1).double().numpy()
    expected = np.pi / 2 * np.sqrt(np.linalg.eigvalsh(np.cov(rows.T))).sum()
    assert viv(latents) == pytest.approx(expected, rel=1e-5)


def test_neighbours_agree_with_themselves_and_not_with_noise():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(200, 2, 3, 3, generator=generator), torch.randn(200, 8, generator=generator)
    unit = torch.nn.functional.normalize(latents.flatten(1), dim=1).unflatten(1, (2, 3, 3))
    assert neighbour_consistency(unit, latents.flatten(1)) == 1.0
    assert neighbour_consistency(latents, noise) < 0.1


def test_white_latents_hold_half_of_their_power_above_half_of_the_radius_and_smooth_ones_less(openclipart_images):
    white = torch.randn(256, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(openclipart_images, size=(12, 12), mode="area")
    assert high_frequency_share(smooth) < 0.3 < high_frequency_share(white) < 1


def test_the_panel_refuses_few_images_and_latents_that_are_not_finite(openclipart_images):
    vae = VAES.get("pca-f8c4").tiny()
    latents = vae.encode(openclipart_images)
    with pytest.raises(SanakitError, match="SK0403.*8 images"):
        panel(vae, openclipart_images[:8], latents[:8])
    latents[3, 2, 0, 0] = float("nan")
    with pytest.raises(SanakitError, match="SK0204.*channel 2"):
        panel(vae, openclipart_images, latents)


def test_two_panels_stand_side_by_side_and_viv_ranks_equal_sizes_only(openclipart_images):
    base, candidate = VAES.get("pca-f16c16").load(), VAES.get("pca-f16c32").load()
    rows = {row["metric"].split(",")[0]: row for row in compare_panels(base, candidate, openclipart_images)}
    assert rows["VIV"]["better"] == "" and rows["spectrum KL"]["better"] == "lower"
    same = compare_panels(base, base, openclipart_images)
    assert [row["base"] for row in same] == pytest.approx([row["candidate"] for row in same], abs=1e-5)
    assert same[0]["better"] == "lower"


def test_the_distance_sees_the_images_in_their_own_range_and_is_the_kernel_distance(openclipart_images):
    noise = torch.rand(openclipart_images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    real, other = openclipart_images[:16], openclipart_images[16:]
    sides = [features(images) for images in (noise, real)]
    if sides[0] is None:
        pytest.skip("no EffLite0")
    pooled = [maps.mean((2, 3)) for maps in sides]
    assert kid(noise, real) == pytest.approx(kernel_distance(*pooled)(np.full(32, 1 / 32)), rel=1e-5)
    assert kid(noise, real) > 1 > abs(kid(other, real))
    assert kid(other, real) > kid(real, real)


@pytest.mark.parametrize("name", ["rae-dinov2-small", "pca-f8c4", "kl-f8c4"])
def test_the_panel_has_rows_for_vaes_of_one_image_size_too(name, monkeypatch):
    """Such a VAE has no figure at half of it."""
    monkeypatch.setattr("sanakit.checks.diffusability.features", lambda images: None)
    vae = VAES.get(name).tiny()
    side = vae.fixed_image_size or 2 * vae.spec.spatial_compression_ratio
    images = torch.rand(16, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    metrics = [row["metric"] for row in compare_panels(vae, vae, images)]
    assert any("quarter turn" in metric for metric in metrics)
    assert any("half size" in metric for metric in metrics) == (vae.fixed_image_size is None)
    assert np.isfinite(equivariance_errors(vae, images[:2])).all()


@pytest.mark.parametrize("side", [16, 24, 31])
def test_small_images_have_perceptual_features(side):
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    distance = perceptual_distance(images, images.flip(0))
    assert distance is None or (distance > 0).all()


def test_without_a_base_no_panel_is_measured(openclipart_images, monkeypatch):
    monkeypatch.setattr("sanakit.checks.diffusability.panel", None)
    assert compare_panels(None, VAES.get("pca-f8c4").tiny(), openclipart_images) == []
