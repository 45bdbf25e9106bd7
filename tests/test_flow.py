"""Identities of the flow: endpoints, inverses, shifts."""

import pytest
import torch

from sanakit import flow


def test_interpolation_endpoints_and_the_clean_estimate_are_inverse():
    latents, noise = torch.randn(2, 5, 3, 4, 4).unbind()
    assert torch.equal(flow.interpolate(latents, noise, torch.zeros(5)), latents)
    assert torch.equal(flow.interpolate(latents, noise, torch.ones(5)), noise)
    sigmas = torch.rand(5)
    noisy = flow.interpolate(latents, noise, sigmas)
    torch.testing.assert_close(flow.predict_clean(noisy, noise - latents, sigmas), latents)


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_shift_keeps_the_ends_and_never_lowers_noise(shift):
    sigmas = torch.linspace(0, 1, 11)
    shifted = flow.shift_sigmas(sigmas, shift)
    assert shifted[0] == 0 and shifted[-1] == 1
    assert (shifted >= sigmas - 1e-6).all() and (shifted.diff() > 0).all()


def test_flow_shift_of_published_latents():
    assert flow.flow_shift_for((32, 32, 32)) == pytest.approx(2.83, abs=0.01)
    assert flow.flow_shift_for((16, 128, 128)) == pytest.approx(8.0)
    assert flow.flow_shift_for((4, 8, 8)) == 1.0


def test_velocity_loss_is_zero_at_the_truth_and_per_sample():
    latents, noise = torch.randn(2, 3, 2, 4, 4).unbind()
    assert flow.velocity_loss(noise - latents, latents, noise).abs().max() == 0
    wrong = noise - latents
    wrong[1] += 1
    torch.testing.assert_close(flow.velocity_loss(wrong, latents, noise), torch.tensor([0.0, 1.0, 0.0]))


def test_the_shift_of_a_swapped_vae_is_the_bases_own_by_the_root_of_the_ratio_of_values():
    sana_512 = (32, 16, 16)
    assert flow.swapped_shift(3.0, sana_512, sana_512) == 3.0
    assert flow.swapped_shift(3.0, sana_512, (128, 8, 8)) == 3.0  # f64c128: as many values
    assert flow.swapped_shift(3.0, sana_512, (16, 64, 64)) == pytest.approx(3.0 * 8**0.5)
    assert flow.swapped_shift(1.0, (32, 6, 6), (16, 6, 6)) == pytest.approx(0.5**0.5)
