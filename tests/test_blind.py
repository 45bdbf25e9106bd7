"""Losses without the prompt, the unit of a text swap, and controls with random weights."""

import numpy as np
import pytest
import torch
from torch import nn

from sanakit.data.dataset import LatentDataset
from sanakit.errors import SanakitError
from sanakit.evaluation.blind import blind_held_out, conditional_gain
from sanakit.evaluation.held_out import HeldOut, held_out
from sanakit.flow import EVAL_SIGMAS
from sanakit.placement import host
from sanakit.swap.quality import TEXT_TOLERANCE, prompt_weights, text_target
from sanakit.text_encoders import TEXT_ENCODERS, PromptEmbeds

SPREAD = 0.8  # of latents about what their prompt names
LEVELS = torch.tensor([-1.5, -0.5, 0.5, 1.5])


class Ideal:
    """The best velocity for latents that are a level named by the prompt and Gaussian noise about it, in closed form.
    null: "blind", the best prediction without a prompt, or "garbage", as of a core trained without prompt dropout."""

    def __init__(self, null, deaf=False):
        self.core, self.null, self.deaf = nn.Identity(), null, deaf
        self.placement, self.part = host(), ""

    def drop_prompts(self, prompt, drop):
        return PromptEmbeds(torch.full_like(prompt.embeds, 99.0), prompt.mask)

    def velocity(self, noisy, sigmas, prompt):
        sigma = sigmas.reshape(-1, 1, 1, 1)
        named = prompt.embeds[:, 0, 0].reshape(-1, 1, 1, 1)
        dropped = named == 99.0
        if self.null == "garbage":
            named = torch.where(dropped, 40.0 * noisy.roll(1, 3).sign(), named)
        blind = torch.full_like(dropped, self.deaf) | (dropped if self.null == "blind" else torch.zeros_like(dropped))
        mean = torch.where(blind, self.level_of(noisy, sigma), named)
        gain = (1 - sigma) * SPREAD**2 / ((1 - sigma) ** 2 * SPREAD**2 + sigma**2)
        clean = mean + gain * (noisy - (1 - sigma) * mean)
        return (noisy - clean) / sigma

    @staticmethod
    def level_of(noisy, sigma):
        """Mean of the levels by their likelihood, one level for a whole image."""
        width = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
        away = (noisy[..., None] - (1 - sigma[..., None]) * LEVELS).square().sum((1, 2, 3), keepdim=True)
        return ((-away / (2 * width[..., None])).softmax(-1) * LEVELS).sum(-1)


@pytest.fixture
def world():
    generator = torch.Generator().manual_seed(0)
    level = LEVELS[torch.randint(4, (256,), generator=generator)]
    latents = level.reshape(-1, 1, 1, 1, 1) + SPREAD * torch.randn(256, 1, 1, 1, 2, generator=generator)
    return LatentDataset(
        names=[str(i) for i in range(256)],
        latents=latents,
        captions=PromptEmbeds(level.reshape(-1, 1, 1), torch.ones(256, 1, dtype=torch.bool)),
        first=torch.arange(256),
        count=torch.ones(256, dtype=torch.long),
    )


def gains(system, data):
    weights = torch.from_numpy(prompt_weights(held_out(system, data), blind_held_out(system, data)))
    return weights, conditional_gain(system, data, weights=weights)


def test_a_base_without_prompt_dropout_has_nearly_the_unit_of_one_with_it(world):
    _, true = gains(Ideal("blind"), world)
    weights, estimate = gains(Ideal("garbage"), world)
    null = weights.float() @ (
        held_out(Ideal("garbage"), world, prompt="null").losses - held_out(Ideal("garbage"), world).losses
    )
    assert null.mean() > 20 * true.mean(), "the null prompt alone says nothing of such a base"
    assert 0.95 < float(estimate.mean() / true.mean()) < 1.3


def test_no_single_prompt_blind_prediction_is_better_than_their_combination(tiny_system, tiny_data):
    blind = blind_held_out(tiny_system, tiny_data, count=48)
    null = held_out(tiny_system, tiny_data, count=48, prompt="null")
    assert (blind.losses.mean(1) <= null.losses.mean(1) + 1e-6).all()
    assert blind.losses.shape == null.losses.shape == (len(EVAL_SIGMAS), 48)


def test_a_candidate_that_ignores_its_prompts_is_at_2(world):
    base = Ideal("blind")
    sighted, blind = held_out(base, world), blind_held_out(base, world)
    target = text_target(sighted, blind, prompt_weights(sighted, blind))
    assert target.relative(sighted).mean() == pytest.approx(1)
    assert target.relative(held_out(Ideal("blind", deaf=True), world)).mean() == pytest.approx(2, abs=0.03)
    assert target.reached(sighted) and not target.reached(held_out(Ideal("blind", deaf=True), world))
    assert target.weights.sum() == pytest.approx(1) and target.tolerance == TEXT_TOLERANCE < 1.2


def constant(*losses):
    """HeldOut of 64 images, one loss a noise level."""
    return HeldOut(EVAL_SIGMAS, torch.tensor(losses)[:, None].expand(-1, 64).contiguous())


def test_noise_levels_count_by_what_prompts_are_worth_there():
    sighted = constant(0.5, 0.4, 0.4, 0.5, 0.6)
    weights = prompt_weights(sighted, constant(0.49, 0.4, 0.41, 0.53, 0.66))
    np.testing.assert_allclose(weights, [0, 0, 0.1, 0.3, 0.6], atol=1e-6)
    with pytest.raises(SanakitError, match="SK0503"):
        prompt_weights(sighted, sighted)


def test_a_base_whose_prompts_do_not_matter_judges_no_text_encoder():
    sighted = constant(0.5, 0.4, 0.4, 0.5, 0.6)
    noise = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(SanakitError, match=r"SK0503.*within its noise on 64 images"):
        text_target(sighted, HeldOut(EVAL_SIGMAS, sighted.losses + 0.1 * (noise - noise.mean())), np.full(5, 0.2))


@pytest.mark.parametrize("name", TEXT_ENCODERS.names())
def test_every_encoder_has_a_control_with_random_weights(name):
    encoder = TEXT_ENCODERS.get(name).tiny()
    before, prompts = encoder.fingerprint(), ["a b", "c d e"]
    trained, first, again = (
        e.encode(prompts) for e in (encoder, encoder.with_random_weights(3), encoder.with_random_weights(3))
    )
    other = encoder.with_random_weights(4).encode(prompts)
    assert torch.equal(first.embeds, again.embeds) and torch.equal(first.mask, trained.mask)
    assert not torch.allclose(first.embeds, trained.embeds) and not torch.allclose(first.embeds, other.embeds)
    assert encoder.fingerprint() == before and encoder.with_random_weights(3).spec == encoder.spec
    assert next(encoder.with_random_weights(0).model.parameters()).dtype == next(encoder.model.parameters()).dtype
