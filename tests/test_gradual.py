"""Gradual training: which parameters moved at which step, and that a resume does not change it."""

import re
from dataclasses import replace

import pytest
import torch

from sanakit.config import make_config
from sanakit.core.dit import new_core
from sanakit.errors import SanakitError
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.gradual import join_gradually
from sanakit.training.checkpoint import latest, load_checkpoint, save_checkpoint
from sanakit.training.loop import TrainOptions, fit, new_state
from sanakit.training.parameters import check_movement, parameter_digests

DEPTH, STEPS, SHARE = 5, 12, 0.5
OPTIONS = TrainOptions(max_steps=STEPS, batch_size=4, warmup=2)
# blocks by the step at which they join: both ends, then inwards
FROM_THE_ENDS = {0: 0, 1: 3, 2: 6, 3: 3, 4: 0}


@pytest.fixture
def deep_system(tiny_system):
    core = new_core({k: v for k, v in tiny_system.core.config.items() if k[0] != "_"} | {"num_layers": DEPTH}, seed=0)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(core.proj_out.weight, std=0.1, generator=generator)
    torch.nn.init.ones_(core.caption_norm.weight)
    return replace(tiny_system, core=core)


def prepared(system, name, kind, share=SHARE):
    """The strategy's groups, low-rank adapters drawn alike every time."""
    core = system.core
    torch.manual_seed(0)
    groups = STRATEGIES.get(name).parameter_groups(core)
    torch.nn.init.ones_(core.caption_norm.weight)
    return new_state(core, join_gradually(core, groups, kind=kind, share=share, max_steps=STEPS), OPTIONS)


def first_moves(system, data, state):
    """The number of steps after which each trained parameter differs from the start for the first time."""
    start, moved = parameter_digests(system.core), {}

    def evaluate(step, *_):
        for name, digest in parameter_digests(system.core).items():
            if digest != start[name]:
                moved.setdefault(name, step)

    fit(system, data, OPTIONS, state, after_step=evaluate)
    return moved


def test_low_rank_adapters_join_from_both_ends_to_the_middle(deep_system, tiny_data):
    moved = first_moves(deep_system, tiny_data, prepared(deep_system, "lora", "vae"))
    blocks = {n: s for n, s in moved.items() if n.startswith("transformer_blocks.")}
    assert len(blocks) == DEPTH * 2 * 4 * 2 and all(".lora_" in name for name in blocks)
    for name, step in blocks.items():
        joins = FROM_THE_ENDS[int(name.split(".")[1])]
        assert step == joins + 1, name
    assert moved["patch_embed.proj.weight"] == moved["proj_out.weight"] == 1


def test_captions_are_read_first_then_the_rest_from_the_first_block_on(deep_system, tiny_data):
    moved = first_moves(deep_system, tiny_data, prepared(deep_system, "finetune", "text_encoder"))
    assert moved.keys() == dict(deep_system.core.named_parameters()).keys()
    for name, step in moved.items():
        block = re.match(r"transformer_blocks\.(\d)\.(\w+)", name)
        late = block and block[2] != "attn2"
        joins = round(SHARE * STEPS * (int(block[1]) + 1) / DEPTH) if late else 0
        joins = round(SHARE * STEPS) if name.startswith("time_embed") else joins
        assert step == joins + 1, name


def test_a_block_that_waits_has_neither_moments_nor_part_in_the_norm(deep_system, tiny_data):
    state = prepared(deep_system, "finetune", "vae")
    fit(deep_system, tiny_data, OPTIONS, state, until=2)
    held = {id(p) for p in state.optimizer.state}
    outer, inner = (deep_system.core.transformer_blocks[i].attn1.to_q.weight for i in (0, 2))
    assert id(outer) in held and id(inner) not in held
    rates = {g["joins"]: g["lr"] for g in state.optimizer.param_groups if g["name"] == "core"}
    assert rates[0] == pytest.approx(0.7 * OPTIONS.learning_rate, rel=0.1) and rates[6] == 0.0
    fit(deep_system, tiny_data, OPTIONS, state, until=7)
    rates = {g["joins"]: g["lr"] for g in state.optimizer.param_groups if g["name"] == "core"}
    assert rates[6] == pytest.approx(rates[0] / 2) and rates[3] == rates[0]  # a warm-up of its own


@pytest.mark.parametrize("name", ["lora", "finetune"])
def test_a_resume_while_blocks_join_is_bit_exact(name, deep_system, tiny_data, tmp_path):
    core = deep_system.core
    state = prepared(deep_system, name, "vae")
    fresh = {k: v.clone() for k, v in core.state_dict().items()}
    fit(deep_system, tiny_data, OPTIONS, state)
    straight = {k: v.clone() for k, v in core.state_dict().items()}

    groups = [
        {k: v for k, v in group.items() if k in ("params", "scale", "name", "joins")}
        for group in state.optimizer.param_groups
    ]
    core.load_state_dict(fresh)
    again = fit(deep_system, tiny_data, OPTIONS, new_state(core, groups, OPTIONS), until=4)
    save_checkpoint(tmp_path, core, again, {})
    core.load_state_dict(fresh)
    resumed = new_state(core, groups, OPTIONS)
    load_checkpoint(latest(tmp_path), core, resumed, {})
    fit(deep_system, tiny_data, OPTIONS, resumed)
    assert all(torch.equal(straight[k], v) for k, v in core.state_dict().items())


def test_no_share_is_all_at_once_and_no_block_is_refused(deep_system, tiny_data):
    core = deep_system.core
    groups = STRATEGIES.get("finetune").parameter_groups(core)
    assert join_gradually(core, groups, kind="vae", share=0.0, max_steps=STEPS) is groups
    interface = STRATEGIES.get("align+head").parameter_groups(core)
    with pytest.raises(SanakitError, match="SK0104.*train.gradual.*no block"):
        join_gradually(core, interface, kind="vae", share=SHARE, max_steps=STEPS)
    with pytest.raises(SanakitError, match="SK0104.*train.gradual"):
        make_config({}, ["train.target=vae", "train.gradual=0.5"])
    with pytest.raises(SanakitError, match="SK0104.*train.gradual"):
        make_config({}, ["train.gradual=1.5"])


def test_who_waits_is_not_taken_for_stuck(deep_system, tiny_data):
    core, state = deep_system.core, prepared(deep_system, "finetune", "vae")
    before = parameter_digests(core)
    fit(deep_system, tiny_data, OPTIONS, state, until=5)
    late = [p for group in state.optimizer.param_groups if group["joins"] >= 5 for p in group["params"]]
    check_movement(core, before, late)
    with pytest.raises(SanakitError, match="SK0508.*trained parameters stand still"):
        check_movement(core, before)
