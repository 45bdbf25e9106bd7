"""The plan says what happens to each group, in numbers, and refuses what cannot be built."""

import json

import pytest
import torch

from sanakit.contracts import LatentSpec
from sanakit.core.dit import GROUPS
from sanakit.errors import SanakitError
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.plan import applicable, build, describe_plan, swap_core
from sanakit.swap.plan_remarks import mask_remark


@pytest.fixture
def wide_vae(tiny_system):
    """The same VAE with another record: a finer grid of three channels."""
    from copy import deepcopy

    vae = deepcopy(tiny_system.vae)
    vae.spec, vae.name = LatentSpec(latent_channels=3, spatial_compression_ratio=4), "wide"
    return vae


def plan_of(system, candidate, **options):
    core = swap_core(system, candidate, 0, **options)
    names = applicable(STRATEGIES.names(), system, candidate)
    return describe_plan(system, candidate, core, names)


def test_a_vae_plan_counts_shapes_and_names_what_else_changes(tiny_system, wide_vae):
    plan = plan_of(tiny_system, wide_vae)
    assert json.loads(json.dumps(plan)) == plan
    groups = {row["group"]: row for row in plan["groups"]}
    assert list(groups) == list(GROUPS)
    assert groups["input"]["shapes"] == [
        {"name": "patch_embed.proj.weight", "before": [32, 4, 1, 1], "after": [32, 3, 2, 2]}
    ]
    assert {s["name"] for s in groups["output"]["shapes"]} == {"proj_out.weight", "proj_out.bias"}
    assert not groups["core"]["shapes"] and groups["core"]["parameters"] == groups["core"]["parameters_before"]
    assert plan["strategies"]["align"] == {"input": "align", "output": "align", **dict.fromkeys(GROUPS[2:], "keep")}
    assert plan["strategies"]["scratch"]["core"].startswith("re-initialise, train")
    assert "LoRA rank 16" in plan["strategies"]["lora"]["cross_attention"]
    notes = " ".join(plan["notes"])
    assert "4 x 4 stays: patch 1 -> 2" in notes and "flow shift" in notes
    assert plan_of(tiny_system, wide_vae, adapter="conv-latents")["adapters"] == ["conv-latents"]


@pytest.mark.parametrize(("ratio", "words"), [(16, "coarser"), (4, "stays")])
def test_token_grids_of_another_size_are_said(tiny_system, wide_vae, ratio, words):
    wide_vae.spec = LatentSpec(latent_channels=4, spatial_compression_ratio=ratio)
    assert words in " ".join(plan_of(tiny_system, wide_vae)["notes"])


def test_a_text_plan_speaks_of_null_offsets_and_lengths(tiny_system):
    from sanakit.text_encoders import TEXT_ENCODERS

    candidate = TEXT_ENCODERS.get("wordllama").tiny()
    plan = plan_of(tiny_system, candidate)
    notes = " ".join(plan["notes"])
    assert "null embedding is recomputed" in notes and "paired by character offsets" in notes
    assert [g["group"] for g in plan["groups"] if g["shapes"]] == ["caption"]
    candidate.tokenizer = None
    assert "no offsets of wordllama" in " ".join(plan_of(tiny_system, candidate)["notes"])


def test_what_cannot_be_built_is_refused_with_both_sides_numbers(tiny_system, wide_vae):
    wide_vae.spec = LatentSpec(latent_channels=4, spatial_compression_ratio=3)
    with pytest.raises(SanakitError, match="SK0110.*32 px.*ratio 3"):
        swap_core(tiny_system, wide_vae, 0)
    tiny_system.image_size = 24
    wide_vae.spec = LatentSpec(latent_channels=4, spatial_compression_ratio=6)
    with pytest.raises(SanakitError, match="SK0110.*8 px wide.*cells of 6 px"):
        swap_core(tiny_system, wide_vae, 0)


@pytest.mark.parametrize("name", ["align", "naive", "scratch"])
def test_a_built_system_has_the_adapter_that_was_asked_for(tiny_system, tiny_data, name):
    from sanakit.adapters import adapters_of

    built, _ = build(
        tiny_system, tiny_system.vae, STRATEGIES.get(name), tiny_data, tiny_data, seed=0, adapter="conv-latents"
    )
    assert adapters_of(built.core) == ("conv-latents",)


def test_a_base_that_reads_its_padding_is_named(tiny_system, tiny_data):
    """Train the little core on captions of which the mask hides what matters, then ask."""
    assert mask_remark(tiny_system, tiny_data) == ""  # an untrained head answers the same whatever it reads
    from dataclasses import replace

    from sanakit.text_encoders import PromptEmbeds
    from sanakit.training.loop import TrainOptions, fit, new_state

    generator = torch.Generator().manual_seed(0)
    target = torch.randn(64, 1, 4, 1, 1, generator=generator).expand(64, 2, 4, 4, 4) * 3
    embeds = torch.zeros(128, 16, 16)
    embeds[:, 8:, :4] = target[:, :, :, 0, 0].reshape(128, 1, 4)  # the padding tells the image
    mask = torch.zeros(128, 16, dtype=torch.bool)
    mask[:, 0] = True
    seen = replace(tiny_data, latents=target, captions=PromptEmbeds(embeds, torch.ones_like(mask)))
    options = TrainOptions(max_steps=150, batch_size=32, learning_rate=5e-3, prompt_dropout=0.0, warmup=5)
    torch.nn.init.ones_(tiny_system.core.caption_norm.weight)
    groups = [{"params": list(tiny_system.core.parameters())}]
    fit(tiny_system, seen, options, new_state(tiny_system.core, groups, options))
    masked = replace(seen, captions=PromptEmbeds(embeds, mask))
    assert "without an attention mask" in mask_remark(tiny_system, masked)


@pytest.mark.parametrize("name", ["align", "naive", "scratch", "reuse"])
def test_an_equal_geometry_keeps_the_shift_that_the_base_was_trained_with(tiny_system, tiny_data, name):
    from dataclasses import replace

    base = replace(tiny_system, flow_shift=3.0)
    built, _ = build(base, base.vae, STRATEGIES.get(name), tiny_data, tiny_data, seed=0)
    assert built.flow_shift == 3.0
    assert "flow shift 3 -> 3, the base's own" in " ".join(plan_of(base, base.vae)["notes"])


def test_a_vae_of_more_values_scales_the_shift_of_the_base(tiny_system, tiny_data, wide_vae):
    from dataclasses import replace

    base = replace(tiny_system, flow_shift=3.0)  # 4 x 4 x 4 = 64 values; the candidate has 3 x 8 x 8 = 192
    wide = replace(tiny_data, latents=torch.randn(64, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    built, _ = build(base, wide_vae, STRATEGIES.get("naive"), wide, tiny_data, seed=0)
    assert built.flow_shift == pytest.approx(3.0 * 3**0.5)
    assert "flow shift 3 -> 5.2" in " ".join(plan_of(base, wide_vae)["notes"])
