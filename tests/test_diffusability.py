"""The panel against constructions whose order is known."""

import numpy as np
import pytest
import torch

from sanakit.swap.diffusability import equivariance, panel, radial_power, slerp, spectrum_kl, viv
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


def test_white_latents_are_further_from_pictures_than_small_pictures_are(openclipart_images):
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
