"""Where strategies that train begin: train.start, what the race and a full run make of it, and what is said."""

from types import SimpleNamespace

import pytest
import torch

from sanakit.config import make_config
from sanakit.contracts import LatentSpec
from sanakit.errors import SanakitError
from sanakit.evaluation.held_out import HeldOut
from sanakit.strategies.base import STRATEGIES
from sanakit.swap import start as starts
from sanakit.swap.plan import build, strategy_plan, swap_core
from sanakit.swap.start import choose_start, start_needs, start_remark, starting_at

FOLLOW = {"align+head", "lora", "finetune"}


class Journal:
    """The run folder's JSON files, in memory."""

    def __init__(self):
        self.files = {}

    def write_json(self, name, value):
        self.files[name] = value

    def read_json(self, name, default=None):
        return self.files.get(name, default)

    def read_validation(self):
        return {"stages": {}}


def swap_of(monkeypatch, errors, start="auto"):
    """A swap whose starts have these held-out errors, and the list of those that were built."""
    built = []

    def started(strategy):
        built.append(strategy.initialise)
        return strategy.initialise, {"start_note": errors["note"]} if "note" in errors else {}

    def evaluate(system, data, *, count):
        return HeldOut((0.5,), torch.full((1, count), errors[system]))

    monkeypatch.setattr(starts, "held_out", evaluate)
    swap = SimpleNamespace(
        config=make_config({"train": {"start": start}}),
        candidate_data=(None, None),
        num_held_out=4,
        target=SimpleNamespace(relative=lambda result: result.losses.mean(0).numpy()),
        run=Journal(),
        fingerprint=lambda stage: f"of {stage}",
    )
    return swap, started, built


def test_three_strategies_follow_the_start_and_the_others_do_not():
    for name in STRATEGIES.names():
        strategy = STRATEGIES.get(name)
        following = starting_at(strategy, "align-blocks")
        assert (following.initialise == "align-blocks") == (name in FOLLOW | {"align-blocks"}), name
        assert (
            following.name == name
            and following.scales == strategy.scales
            and starting_at(strategy, "align") is strategy
        )


@pytest.mark.parametrize(("blocks", "best"), [(1.2, "align-blocks"), (1.4, "align")])
def test_auto_takes_the_lower_error_and_a_later_stage_keeps_it(monkeypatch, blocks, best):
    swap, started, built = swap_of(monkeypatch, {"align": 1.3, "align-blocks": blocks})
    assert choose_start(swap, [STRATEGIES.get("lora")], started) == best
    assert swap.run.files["start.json"]["start"] == best
    assert swap.run.files["start.json"]["relative_errors"]["align-blocks"] == pytest.approx(blocks)
    assert choose_start(swap, [STRATEGIES.get("lora")], started, again=False) == best and len(built) == 2
    swap.fingerprint = lambda stage: "another candidate's"
    choose_start(swap, [STRATEGIES.get("lora")], started, again=False)
    assert len(built) == 4 and swap.run.files["start.json"]["measured"] == "another candidate's"


def test_what_is_named_is_taken_and_nothing_is_built_for_it(monkeypatch):
    for name in ("align", "align-blocks"):
        swap, started, built = swap_of(monkeypatch, {}, start=name)
        assert choose_start(swap, [STRATEGIES.get("finetune")], started) == name and not built
    swap, started, built = swap_of(monkeypatch, {})
    assert choose_start(swap, [STRATEGIES.get("scratch")], started) == "align" and not built
    with pytest.raises(SanakitError, match=r"SK0104.*train\.start"):
        make_config({"train": {"start": "blocks"}})


def test_a_start_that_fell_back_is_align_and_says_so(monkeypatch):
    swap, started, _ = swap_of(monkeypatch, {"align": 1.3, "align-blocks": 1.2, "note": "16 tokens an image -> 4"})
    assert choose_start(swap, [STRATEGIES.get("finetune")], started) == "align"
    assert swap.run.files["start.json"]["note"] == "16 tokens an image -> 4"


def test_unequal_token_grids_are_started_by_align(tiny_system, tiny_data):
    """A grid of 2 x 2 tokens has no stream to bring to one of 4 x 4: the result is that of align, to the bit."""
    from copy import deepcopy
    from dataclasses import replace

    vae = deepcopy(tiny_system.vae)
    vae.spec, vae.name = LatentSpec(latent_channels=4, spatial_compression_ratio=16), "coarse"
    data = replace(
        tiny_data, latents=torch.nn.functional.avg_pool2d(tiny_data.latents.flatten(0, 1), 2).unflatten(0, (64, 2))
    )
    built = {n: build(tiny_system, vae, STRATEGIES.get(n), data, tiny_data, seed=0) for n in ("align", "align-blocks")}
    assert "16 tokens an image -> 4" in built["align-blocks"][1]["start_note"] and "start_note" not in built["align"][1]
    aligned, other = (system.core.state_dict() for system, _ in built.values())
    assert all(torch.equal(aligned[name], other[name]) for name in aligned)


def test_plan_and_dry_run_say_how_many_draws_and_what_they_take(tiny_system):
    config = make_config({"train": {"start_draws": 1024}})
    strategies = [STRATEGIES.get("finetune")]
    core = swap_core(tiny_system, tiny_system.vae, 0)
    needs = start_needs(config, core, (4, 4, 4), strategies)
    assert needs["start_draws"] == 1024
    assert needs["start_streams"] == 2 * 1024 * 16 * 32 * 4  # two, draws x tokens x hidden in fp32
    remark = start_remark(16, 16, needs)
    assert "1024 draws (train.start_draws)" in remark and "4.0 MiB" in remark
    assert "as align does: 16 tokens an image -> 4" in start_remark(16, 4, needs)
    plain = make_config({"train": {"start": "align"}})
    assert start_needs(plain, core, (4, 4, 4), strategies) == {} and start_remark(16, 16, {}) == ""
    assert start_needs(plain, core, (4, 4, 4), [STRATEGIES.get("align-blocks")])["start_draws"] == 512
    plan = strategy_plan(STRATEGIES.get("align-blocks"), ["input", "output"])
    assert plan["input"] == "align" and plan["core"] == plan["cross_attention"] == "solve output layers"
    assert strategy_plan(starting_at(STRATEGIES.get("lora"), "align-blocks"), ["input"])["core"] == (
        "solve output layers, LoRA rank 16"
    )


def test_the_dry_run_counts_what_the_start_of_a_swap_takes(small_world):
    """Streams of 512 draws x 16 tokens x 16 channels in fp32, two of them; nothing where the base itself goes on."""
    from sanakit.cli.train import _needs

    swap = make_config(small_world | {"vae": {"name": "pca-f8c4"}})
    assert _needs(swap, 1)["start_streams"] == 2 * 512 * 16 * 16 * 4
    assert "start_draws" not in _needs(make_config(small_world), 1)
