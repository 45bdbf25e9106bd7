"""Closed forms against direct least squares and exact constructions."""

import pytest
import torch

from sanakit.adapters import ADAPTERS
from sanakit.alignment import CrossMoments, align_input, align_output
from sanakit.alignment.vae import head_rows
from sanakit.errors import SanakitError


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator)
    y = x @ torch.randn(6, 4, generator=generator) + 0.1 * torch.randn(500, 4, generator=generator) + 2
    return x, y


def moments_of(x, y):
    moments = CrossMoments.empty(x.shape[1], y.shape[1])
    moments.add(x, y)
    return moments


def test_ridge_without_penalty_is_least_squares(rows):
    x, y = rows
    weight, bias = moments_of(x, y).ridge(penalty=1e-10)
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    solution = torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(weight, solution[:-1].T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bias, solution[-1], atol=1e-4, rtol=1e-4)


def test_merge_equals_one_pass(rows):
    x, y = rows
    merged = moments_of(x[:123], y[:123]).merge(moments_of(x[123:], y[123:]))
    torch.testing.assert_close(merged.ridge()[0], moments_of(x, y).ridge()[0])


@pytest.mark.parametrize(("wide", "narrow"), [(6, 4), (4, 6), (5, 5)])
def test_procrustes_is_semi_orthogonal_and_recovers_a_rotation(wide, narrow):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2000, wide, generator=generator)
    truth = torch.linalg.qr(torch.randn(max(wide, narrow), max(wide, narrow), generator=generator))[0][:narrow, :wide]
    rotation, _ = moments_of(x, x @ truth.T).procrustes()
    gram = rotation @ rotation.T if wide >= narrow else rotation.T @ rotation
    torch.testing.assert_close(gram, torch.eye(min(wide, narrow)), atol=1e-5, rtol=0)
    if wide <= narrow or wide == narrow:
        torch.testing.assert_close(rotation, truth, atol=0.1, rtol=0)


def test_too_few_rows_and_values_that_are_not_finite_are_refused():
    moments = CrossMoments.empty(3, 2)
    with pytest.raises(SanakitError, match="SK0403"):
        moments.ridge()
    with pytest.raises(SanakitError, match="SK0204"):
        moments.add(torch.full((4, 3), float("nan")), torch.zeros(4, 2))


def test_head_rows_invert_the_cores_unpatchify(tiny_system):
    """Feeding the head's order through the core's own unpatchify gives the velocity back."""
    core = ADAPTERS.get("linear-latents").fit(
        tiny_system.core,
        type(tiny_system.vae.spec)(latent_channels=4, spatial_compression_ratio=4),
        base_ratio=8,
        image_size=32,
    )
    assert core.config.patch_size == 2
    velocity = torch.randn(2, 4, 8, 8)
    wanted = head_rows(velocity, 2)
    core.proj_out = torch.nn.Identity()
    core.norm_out.forward = lambda *args: wanted
    out = core(torch.zeros(2, 4, 8, 8), torch.zeros(2, 3, 16), torch.ones(2), return_dict=False)[0]
    torch.testing.assert_close(out, velocity)


def test_aligning_a_vae_with_itself_changes_nothing(tiny_system, tiny_data):
    core = ADAPTERS.get("linear-latents").fit(tiny_system.core, tiny_system.vae.spec, base_ratio=8, image_size=32)
    torch.nn.init.normal_(core.patch_embed.proj.weight)
    latents = tiny_data.latents[:, 0]
    scores = align_input(core, tiny_system.core, latents, latents, method="ridge")
    assert scores["input_r2"] > 0.999
    torch.testing.assert_close(core.patch_embed(latents), tiny_system.core.patch_embed(latents), atol=2e-2, rtol=2e-2)


def test_output_alignment_lowers_the_loss(tiny_system, tiny_data):
    from sanakit.evaluate import held_out

    before = held_out(tiny_system, tiny_data).loss
    align_output(tiny_system, tiny_data, count=256)
    assert held_out(tiny_system, tiny_data).loss < before
