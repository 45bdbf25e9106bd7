"""The race on a tiny system: fairness, halving, adapters that leave no trace."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from sanakit.alignment import INPUT_METHODS, CrossMoments, feature_distance
from sanakit.alignment.vae import solve_input
from sanakit.evaluate import averaged, held_out
from sanakit.flow import EVAL_SIGMAS, noise_power_ratio
from sanakit.reporting.ci import in_doubt
from sanakit.swap.base import STRATEGIES
from sanakit.swap.forecast import Forecast, steps_that_tell
from sanakit.swap.quality import Target
from sanakit.swap.race import Course, enter, race, recommend, rungs, survivors


@pytest.fixture
def course(tiny_data):
    return Course(data=tiny_data, test=tiny_data, target=target_of(1e-9), count=16, batch_size=8)


def target_of(tolerance):
    """Losses as they are."""
    weights = np.full(len(EVAL_SIGMAS), 1 / len(EVAL_SIGMAS))
    nothing = np.zeros(16)
    return Target(measure="loss", weights=weights, floor=nothing, unit=1.0, base=nothing + 1, tolerance=tolerance)


def arm_of(course, system, name, budget=16):
    return enter(course, STRATEGIES.get(name), replace(system, core=copy.deepcopy(system.core)), budget=budget)


def test_half_of_the_arms_go_on_and_every_arm_is_forecast(course, tiny_system):
    names = ("align", "align+head", "lora", "finetune", "naive", "scratch")
    arms = [arm_of(course, tiny_system, name) for name in names]
    finalists = race(course, arms, budget=16)
    lengths = sorted(a.steps[-1] for a in arms)
    assert len(finalists) >= 2 and all(a.steps[-1] == 16 for a in finalists)
    assert lengths[0] == 0 and set(lengths[1:]) <= {4, 8, 16}
    assert all(a.forecast is not None for a in arms)
    assert recommend(arms).error == min(a.error for a in arms)  # nobody arrives at an error of 1e-9
    assert rungs(16) == [2, 4, 8, 16]


def test_the_better_half_goes_on_and_nobody_is_dropped_for_noise():
    noise = np.random.default_rng(0).normal(size=64) * 0.1
    apart = [np.full(64, 1.0 + 0.1 * i) + noise for i in range(6)]
    assert [survivors(apart, rung, 16) for rung in (2, 4, 8, 16)] == [6, 3, 2, 6]
    level = [np.random.default_rng(i).normal(size=64) for i in range(6)]
    level = sorted((errors - errors.mean() + 0.001 * i for i, errors in enumerate(level)), key=np.mean)
    assert survivors(level, 8, 16) == 6
    assert survivors([*level[:2], level[2] + 5, *[e + 9 for e in level[3:]]], 8, 16) == 2


def test_arms_that_start_alike_share_their_first_result(course, tiny_system):
    first, own = arm_of(course, tiny_system, "align"), arm_of(course, tiny_system, "lora")
    system = replace(tiny_system, core=copy.deepcopy(tiny_system.core))
    shared = enter(course, STRATEGIES.get("lora"), system, budget=16, alike=first)
    assert shared.steps == own.steps == [0]
    torch.testing.assert_close(shared.results[0].losses, own.results[0].losses)


def test_the_cheapest_arm_that_arrives_wins(course, tiny_system):
    arms = [arm_of(course, tiny_system, name) for name in ("align", "finetune")]
    race(replace(course, target=target_of(1e3)), arms, budget=8)
    assert recommend(arms).strategy.name == "align"


@pytest.mark.parametrize(
    ("steps", "high", "told"), [(150, 420.2, 421), (150, np.inf, 300), (np.inf, np.inf, 200), (40, 60, 200)]
)
def test_how_long_a_race_would_tell(steps, high, told):
    assert steps_that_tell(Forecast(steps=steps, low=20, high=high, reached=steps < 100), 100) == told


def test_an_open_end_is_inconclusive_and_said():
    inside = Forecast(steps=150, low=20, high=420, reached=False)
    assert inside.conclusive and replace(inside, high=np.inf, reached=True).conclusive
    assert not replace(inside, high=np.inf).conclusive
    raced = {"recommended": "lora", "steps_that_tell": 300}
    assert in_doubt(raced | {"conclusive": False}).endswith("lora has an open interval, --budget-steps 300 would tell")
    assert in_doubt(raced | {"conclusive": True}) == in_doubt({"recommended": None}) == ""


def test_what_is_spent_once_counts_but_not_where_nothing_needs_training(course, tiny_system):
    """Two arms of the same forecast: the one that spent time before its first step is the dearer."""
    arms = [arm_of(course, tiny_system, name) for name in ("align+head", "cross-attention")]
    for arm in arms:
        arm.steps, arm.seconds, arm.forecast = [0, 8], 8.0, Forecast(steps=20, low=10, high=40, reached=False)
    assert arms[1].trained_parameters > arms[0].trained_parameters and recommend(arms) is arms[0]
    arms[0].seconds_once = 4.0
    assert recommend(arms) is arms[1] and arms[0].cost(20) == 24.0 and arms[0].cost(0) == 0.0
    assert arms[0].as_dict()["predicted_hours"] == 24.0 / 3600


@pytest.mark.parametrize("name", ["align+head", "lora", "cross-attention", "finetune"])
def test_only_the_named_groups_move(course, tiny_system, name):
    arm = arm_of(course, tiny_system, name)
    before = {k: v.detach().clone() for k, v in arm.system.core.named_parameters()}
    race(course, [arm], budget=8)
    scales = arm.strategy.scales
    from sanakit.core.dit import group_of

    for key, value in arm.system.core.named_parameters():
        moves = scales.get("lora" if ".lora_" in key else group_of(key), 0) > 0
        moved = not torch.equal(value, before[key])
        assert moved <= moves, key
        if moves and "lora_A" not in key:  # the gradient of lora_A is zero while lora_B is
            assert moved or value.numel() == 0, key


def test_lora_starts_as_the_same_core_and_folds_into_a_plain_one(course, tiny_system):
    plain = held_out(tiny_system, course.test).loss
    arm = arm_of(course, tiny_system, "lora")
    assert held_out(arm.system, course.test).loss == pytest.approx(plain, rel=1e-6)
    race(course, [arm], budget=8)
    trained = held_out(arm.system, course.test).loss
    arm.strategy.finish(arm.system.core)
    assert set(arm.system.core.state_dict()) == set(tiny_system.core.state_dict())
    assert held_out(arm.system, course.test).loss == pytest.approx(trained, rel=1e-5)


def test_averaged_restores_the_weights(course, tiny_system):
    own = {k: v.clone() for k, v in tiny_system.core.state_dict().items()}
    with averaged(tiny_system.core, {k: torch.zeros_like(v) for k, v in own.items()}):
        assert not any(v.any() for v in tiny_system.core.state_dict().values())
    assert all(torch.equal(v, own[k]) for k, v in tiny_system.core.state_dict().items())


def test_feature_distance_of_a_core_to_itself_is_zero(tiny_system, tiny_data):
    latents, prompt = tiny_data.latents[:8, 0], tiny_data.captions[torch.arange(8)]
    arguments = (latents, latents, prompt, prompt)
    assert max(feature_distance(tiny_system, tiny_system, *arguments)) == 0
    other = replace(tiny_system, core=copy.deepcopy(tiny_system.core))
    torch.nn.init.normal_(other.core.patch_embed.proj.weight)
    assert min(feature_distance(other, tiny_system, *arguments)) > 0.01


def test_coupled_noise_runs_from_ridge_to_procrustes():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 5, generator=generator) * torch.tensor([2.0, 1, 1, 0.5, 0.2])
    moments = CrossMoments.empty(5, 3)
    moments.add(x, x @ torch.randn(5, 3, generator=generator) + torch.randn(4000, 3, generator=generator))
    rotation = moments.procrustes()[0]
    torch.testing.assert_close(moments.noisy(1e-9, rotation)[0], moments.ridge(1e-9)[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moments.noisy(1e6, rotation)[0], rotation, atol=1e-4, rtol=1e-4)


def test_independent_noise_shrinks_and_procrustes_keeps_noise():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=generator)
    moments = CrossMoments.empty(6, 6)
    moments.add(x, x @ torch.linalg.qr(torch.randn(6, 6, generator=generator))[0])
    gains = {m: solve_input(moments, m)[0].square().sum().item() / 6 for m in INPUT_METHODS}
    assert gains["procrustes"] == pytest.approx(1, abs=1e-4)
    assert gains["coupled"] == pytest.approx(1, abs=0.02)
    assert gains["independent"] == pytest.approx((1 / (1 + noise_power_ratio())) ** 2, abs=0.02)
