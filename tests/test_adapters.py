"""Every registered adapter: fits, starts as the identity, trains, copies, and comes back from disk."""

from copy import deepcopy

import pytest
import torch

from sanakit.adapters import ADAPTERS, adapters_of, attach, rebuild_core
from sanakit.adapters.conv import NeighbourLinear
from sanakit.alignment import align_caption, align_input, align_output
from sanakit.alignment.text import Captions
from sanakit.assembly import LatentDiffusion, evaluating
from sanakit.contracts import LatentSpec, TextSpec
from sanakit.core.dit import group_of, load_core, save_core
from sanakit.errors import SanakitError
from sanakit.evaluation.held_out import held_out
from sanakit.swap.plan import swap_core

NAMES = ADAPTERS.names()
OWN = [name for name in NAMES if not name.startswith("linear")]
SPECS = {
    "latents": LatentSpec(latent_channels=3, spatial_compression_ratio=4),
    "tokens": TextSpec(embed_dim=24, max_tokens=8),
}


def fitted(name, core):
    adapter = ADAPTERS.get(name)
    return adapter.fit(core, SPECS[adapter.kind], seed=3, base_ratio=8, image_size=32)


def run(core, seed=0):
    """The core's answer to inputs of its own shape."""
    generator = torch.Generator().manual_seed(seed)
    config, side = core.config, core.config.sample_size
    embeds = torch.randn(2, 8, config.caption_channels, generator=generator)
    embeds[:, 5:] = 0
    with evaluating(core):
        return core(
            torch.randn(2, config.in_channels, side, side, generator=generator),
            embeds,
            torch.tensor([300.0, 700.0]),
            encoder_attention_mask=(embeds != 0).any(-1),
            return_dict=False,
        )[0]


@pytest.mark.parametrize("name", NAMES)
def test_fits_the_candidate_and_keeps_the_rest(tiny_system, name):
    core, base = fitted(name, tiny_system.core), tiny_system.core
    assert run(core).shape[1] == core.config.out_channels
    kind = ADAPTERS.get(name).kind
    assert (core.config.in_channels == 3) == (kind == "latents")
    assert (core.config.caption_channels == 24) == (kind == "tokens")
    interface = ("input", "output") if kind == "latents" else ("caption",)
    parameters = dict(core.named_parameters())
    for key, value in base.named_parameters():
        if group_of(key) not in interface:
            torch.testing.assert_close(parameters[key], value)


@pytest.mark.parametrize("name", OWN)
def test_starts_as_the_identity_and_can_leave_it(tiny_system, name):
    plain = rebuild_core(tiny_system.core)
    torch.nn.init.normal_(plain.proj_out.weight, generator=torch.Generator().manual_seed(0))
    before = run(plain)
    core = deepcopy(plain)
    attach(core, name, seed=1)
    assert adapters_of(core) == (name,) and not adapters_of(plain)
    torch.testing.assert_close(run(core), before)

    fresh = [p for key, p in core.named_parameters() if key not in dict(plain.named_parameters())]
    fresh += [core.patch_embed.proj.weight] if name == "conv-latents" else []
    core.train()
    for _ in range(2):  # the first step leaves zero, the second one moves what lies behind
        core(torch.randn(2, 4, 4, 4), torch.randn(2, 8, 16), torch.tensor([300.0, 700.0]), return_dict=False)[
            0
        ].square().mean().backward()
        with torch.no_grad():
            for parameter in fresh:
                parameter -= 10 * parameter.grad
    assert all(p.grad.abs().max() > 0 for p in fresh)
    assert (run(core) - before).abs().max() > 1e-6


@pytest.mark.parametrize("name", OWN)
def test_a_copy_is_its_own_and_disk_brings_it_back(tiny_system, name, tmp_path):
    core = fitted(name, tiny_system.core)
    torch.nn.init.normal_(core.proj_out.weight)
    with torch.no_grad():
        for key, parameter in core.named_parameters():
            if key not in dict(tiny_system.core.named_parameters()):
                parameter.normal_(std=0.3)
    before = run(core)
    copy = deepcopy(core)
    torch.testing.assert_close(run(copy), before)
    for parameter in copy.parameters():
        torch.nn.init.zeros_(parameter)
    run(copy, seed=1)
    torch.testing.assert_close(run(core), before)

    save_core(core, tmp_path)
    loaded = load_core(tmp_path)
    assert adapters_of(loaded) == (name,)
    torch.testing.assert_close(run(loaded), before)


@pytest.mark.parametrize("name", ["conv-latents", "mlp-latents"])
def test_the_adapter_of_the_other_joint_stays(tiny_system, name):
    both = ADAPTERS.get("resampler-caption").fit(fitted(name, tiny_system.core), SPECS["tokens"])
    assert adapters_of(both) == (name, "resampler-caption")
    again = ADAPTERS.get("linear-latents").fit(both, SPECS["latents"], base_ratio=8, image_size=32)
    assert adapters_of(again) == ("resampler-caption",)


def test_padding_does_not_reach_the_resamplers_answer(tiny_system):
    core = fitted("resampler-caption", tiny_system.core)
    layer = core.caption_projection.linear_1
    torch.nn.init.normal_(layer.answer.weight)
    embeds = torch.randn(1, 4, 24)
    longer = torch.cat([embeds, torch.zeros(1, 4, 24)], 1)
    torch.testing.assert_close(layer(longer)[:, :4], layer(embeds))


def test_the_timestep_connector_knows_the_noise_level(tiny_system):
    core = fitted("timestep-caption", tiny_system.core)
    layer = core.caption_projection.linear_1
    torch.nn.init.normal_(layer.outer.weight)
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with evaluating(core):
        for time in (100.0, 900.0):
            core(torch.ones(1, 4, 4, 4), torch.ones(1, 8, 24), torch.tensor([time]), return_dict=False)
    assert (seen[0] - seen[1]).abs().max() > 1e-4


def test_conv_latents_are_solved_with_their_neighbours(tiny_system, tiny_data):
    """A target that is the neighbour's latent: single patches explain nothing of it, 3 x 3 patches all of it."""
    latents = tiny_data.latents[:, 0]
    moved = torch.roll(latents, 1, dims=-1)
    moved[..., 0] = 0
    scores = {}
    for name in ("linear-latents", "conv-latents"):
        core = ADAPTERS.get(name).fit(tiny_system.core, tiny_system.vae.spec, base_ratio=8, image_size=32)
        scores[name] = align_input(core, tiny_system.core, latents, moved, method="ridge")["input_r2"]
    assert scores["linear-latents"] < 0.1 and scores["conv-latents"] > 0.99
    torch.testing.assert_close(core.patch_embed(latents), tiny_system.core.patch_embed(moved), atol=2e-2, rtol=2e-2)


def test_a_head_that_reads_neighbours_is_solved_better(tiny_system, tiny_data):
    """Latents that are alike all over a image: neighbours say what noise hides."""
    tiny_data.latents = tiny_data.latents.mean((3, 4), keepdim=True).expand_as(tiny_data.latents) * 4
    losses = {}
    for name in ("linear-latents", "conv-latents"):
        core = ADAPTERS.get(name).fit(tiny_system.core, tiny_system.vae.spec, base_ratio=8, image_size=32)
        system = LatentDiffusion(vae=tiny_system.vae, text_encoder=tiny_system.text_encoder, core=core, image_size=32)
        align_output(system, tiny_data, count=512)
        losses[name] = held_out(system, tiny_data).loss
    assert losses["conv-latents"] < losses["linear-latents"]
    head = NeighbourLinear(4, 2)
    head.grid = (3, 3)
    weight, features = torch.randn(2, 36), torch.randn(1, 9, 4)
    with torch.no_grad():
        head.write(weight)
        head.bias.zero_()
        torch.testing.assert_close(head(features), head.read(features) @ weight.T)


@pytest.mark.parametrize("name", [n for n in OWN if n.endswith("caption")])
def test_caption_adapters_are_aligned_like_the_linear_joint(tiny_system, tiny_data, name):
    core = ADAPTERS.get(name).fit(tiny_system.core, TextSpec(embed_dim=16, max_tokens=16), seed=5)
    same = Captions(candidate=tiny_data.captions, base=tiny_data.captions)
    align_caption(core, tiny_system.core, same)
    plain = ADAPTERS.get("linear-caption").fit(tiny_system.core, TextSpec(embed_dim=16, max_tokens=16), seed=5)
    align_caption(plain, tiny_system.core, same)
    torch.testing.assert_close(core.caption_projection.linear_1.weight, plain.caption_projection.linear_1.weight)


def test_an_adapter_of_the_wrong_joint_is_refused(tiny_system):
    with pytest.raises(SanakitError, match="SK0110.*joins tokens"):
        swap_core(tiny_system, tiny_system.vae, 0, "resampler-caption")
    with pytest.raises(SanakitError, match="SK0101"):
        swap_core(tiny_system, tiny_system.vae, 0, "conv-latent")
