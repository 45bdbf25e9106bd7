"""A candidate with more values a token than the base: its other directions pass through the base's stream."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from sanakit.adapters import ADAPTERS
from sanakit.alignment import carry_rest
from sanakit.alignment.carried import quiet_directions, read_strength
from sanakit.contracts import LatentSpec
from sanakit.evaluation.held_out import held_out
from sanakit.strategies.base import STRATEGIES
from sanakit.swap import plan
from sanakit.swap.plan import build, swap_core

ALIGN = STRATEGIES.get("align")


@pytest.fixture
def trained(tiny_system):
    """The tiny system with every layer in use: an untrained head hides what the stream holds."""
    torch.manual_seed(1)
    nn.init.normal_(tiny_system.core.proj_out.weight, std=0.2)
    nn.init.ones_(tiny_system.core.caption_norm.weight)
    return tiny_system


def wider(system, data, channels):
    """A candidate whose first four channels are the base's and whose others are new, and the images in its latents."""
    candidate = deepcopy(system.vae)
    candidate.spec, candidate.name = LatentSpec(latent_channels=channels, spatial_compression_ratio=8), "wider"
    new = torch.randn(64, 2, channels - 4, 4, 4, generator=torch.Generator().manual_seed(5))
    return candidate, replace(data, latents=torch.cat([data.latents, new], dim=2))


def test_the_noise_of_new_directions_is_predicted_before_any_step(trained, tiny_data, monkeypatch):
    candidate, data = wider(trained, tiny_data, 6)
    carried, scores = build(trained, candidate, ALIGN, data, tiny_data, seed=0)
    assert scores["carried"] == 2
    monkeypatch.setattr(plan, "carry_rest", lambda *args, **options: {})
    plain, scores = build(trained, candidate, ALIGN, data, tiny_data, seed=0)
    assert "carried" not in scores
    losses = [held_out(system, data, count=64, sigmas=(0.9,)).loss for system in (carried, plain)]
    assert losses[0] < losses[1] - 0.05, losses


def test_what_the_base_knows_is_read_as_before(trained, tiny_data):
    candidate, data = wider(trained, tiny_data, 6)
    core = swap_core(trained, candidate, seed=0)
    before = core.patch_embed.proj.weight.detach().flatten(1).clone()
    carry_rest(core, trained, data, tiny_data)
    added = core.patch_embed.proj.weight.detach().flatten(1) - before
    length = trained.core.patch_embed.proj.weight.detach().flatten(1).norm(dim=0).mean()
    torch.testing.assert_close(torch.linalg.svdvals(added)[:2], length.expand(2), rtol=1e-4, atol=0)
    columns = added.norm(dim=0) / length  # the images are few: the rotation is turned a little towards the new channels
    assert (columns[:4] < 0.2).all() and (columns[4:] > 0.95).all(), columns
    torch.testing.assert_close(
        added.sum(0), torch.zeros(6), atol=0.05 * float(length), rtol=0
    )  # the norms take a mean away


def test_quiet_directions_cost_less_than_any_others(trained, tiny_data):
    quiet = quiet_directions(trained, tiny_data, 3)
    torch.testing.assert_close(quiet.mT @ quiet, torch.eye(3), atol=1e-5, rtol=0)
    reads = read_strength(trained.core)
    assert float(reads.diagonal().mean()) == pytest.approx(1)
    assert float((quiet.double().mT @ reads @ quiet.double()).diagonal().mean()) < 1


@pytest.mark.parametrize("channels", [4, 13], ids=["as many values", "more than a quarter of the stream"])
def test_nothing_is_carried_where_there_is_nothing_or_too_much(trained, tiny_data, channels):
    candidate, data = wider(trained, tiny_data, channels)
    core = swap_core(trained, candidate, seed=0)
    before = core.patch_embed.proj.weight.detach().clone()
    assert carry_rest(core, trained, data, tiny_data) == {}
    assert torch.equal(core.patch_embed.proj.weight, before)


def test_a_patch_embedding_that_reads_its_neighbours_is_left_as_it_is(trained, tiny_data):
    candidate, data = wider(trained, tiny_data, 6)
    assert "conv-latents" in ADAPTERS.names()
    core = swap_core(trained, candidate, seed=0, adapter="conv-latents")
    assert carry_rest(core, trained, data, tiny_data) == {}
