"""The race on a tiny system: fairness, halving, adapters that leave no trace."""

import copy
import json
import os
import random
import signal
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from sanakit.alignment import INPUT_METHODS, CrossMoments, feature_distance
from sanakit.alignment.vae import solve_input
from sanakit.config import TrainSection, make_config
from sanakit.distributed import STOP
from sanakit.errors import SanakitError
from sanakit.evaluation.held_out import averaged, held_out
from sanakit.flow import EVAL_SIGMAS, noise_power_ratio
from sanakit.loading import load_base
from sanakit.reporting.ci import in_doubt
from sanakit.strategies.base import STRATEGIES
from sanakit.swap import rungs as rungs_module
from sanakit.swap.ending import Question, TimeLimit, conclude, seconds_needed
from sanakit.swap.forecast import Forecast, steps_that_tell
from sanakit.swap.quality import Target
from sanakit.swap.race import OWN_OPTIONS, RaceStopped, advance, at_best_rate, enter, race
from sanakit.swap.race_setup import RaceSetup
from sanakit.swap.race_store import RaceStore
from sanakit.swap.rates import GRID, RateSearch, search_of
from sanakit.swap.rungs import auto_rungs, evaluated_steps_between, fixed_rungs, rungs, survivors
from sanakit.swap.settings import configured, options_of
from sanakit.training import loop as train
from sanakit.training.loop import TrainOptions


@pytest.fixture
def race_setup(tiny_data):
    return setup_of(tiny_data)


def setup_of(data, **changes):
    options = TrainOptions(max_steps=1, batch_size=8)
    defaults = {"data": data, "test": data, "target": target_of(1e-9), "count": 16, "options": options}
    return RaceSetup(**defaults | changes)


def target_of(tolerance):
    """Losses as they are."""
    weights = np.full(len(EVAL_SIGMAS), 1 / len(EVAL_SIGMAS))
    nothing = np.zeros(16)
    return Target(measure="loss", weights=weights, floor=nothing, unit=1.0, base=nothing + 1, tolerance=tolerance)


def arm_of(race_setup, system, name, budget=16):
    return enter(race_setup, STRATEGIES.get(name), replace(system, core=copy.deepcopy(system.core)), budget=budget)


def test_half_of_the_arms_go_on_and_every_arm_is_forecast(race_setup, tiny_system):
    names = ("align", "align+head", "lora", "finetune", "naive", "scratch")
    arms = [arm_of(race_setup, tiny_system, name) for name in names]
    result = race(race_setup, arms, budget=16)
    lengths = sorted(a.steps[-1] for a in arms)
    assert len(result.finalists) >= 2 and all(a.steps[-1] == 16 for a in result.finalists)
    assert lengths[0] == 0 and set(lengths[1:]) <= {4, 8, 16}
    able = [a for a in arms if a in result.finalists or a.state is None]
    assert all((a.forecast is not None) == (a in able) for a in arms), "a dropped arm has no forecast"
    assert not result.answer.in_sight and result.best.error == min(a.error for a in able)  # nobody arrives at 1e-9
    assert (result.step, result.stopped_by) == (16, "steps") and rungs(16) == [2, 4, 8, 16]


def test_the_better_half_goes_on_and_nobody_is_dropped_for_noise():
    noise = np.random.default_rng(0).normal(size=64) * 0.1
    apart = [np.full(64, 1.0 + 0.1 * i) + noise for i in range(6)]
    assert [survivors(apart, rung, 16) for rung in (2, 4, 8, 16)] == [6, 3, 2, 6]
    level = [np.random.default_rng(i).normal(size=64) for i in range(6)]
    level = sorted((errors - errors.mean() + 0.001 * i for i, errors in enumerate(level)), key=np.mean)
    assert survivors(level, 8, 16) == 6
    assert survivors([*level[:2], level[2] + 5, *[e + 9 for e in level[3:]]], 8, 16) == 2


def test_a_dropped_arm_says_why_and_one_that_arrived_is_not_dropped(race_setup, tiny_system):
    from sanakit.swap.race import go_on

    names = ("align+head", "lora", "cross-attention", "finetune")
    arms = [arm_of(race_setup, tiny_system, name) for name in names]
    noise = np.random.default_rng(0).normal(size=16) * 0.01
    for arm, error in zip(arms, (1.1, 1.2, 1.5, 0.9), strict=True):
        arm.steps, arm.errors_by_evaluation = [0, 4], [np.full(16, 2.0), error + noise]
    arms[2].errors_by_evaluation[0] = np.full(16, 0.5)
    question = replace(race_setup, target=target_of(1.0)).question
    running = go_on(question, arms, 4, fixed_rungs(16))
    assert [arm.strategy.name for arm in running] == ["finetune", "align+head"]
    assert arms[1].dropped == "clearly worse than align+head at step 4 (error 1.200 against 1.100)".replace(
        "1.200", f"{arms[1].error:.3f}"
    ).replace("1.100", f"{arms[0].error:.3f}")
    assert arms[2].dropped == "" and arms[3].dropped == ""
    answer, best = conclude(question, arms, running, fixed_rungs(16), 4)
    assert arms[1].forecast is None and arms[1].as_dict()["dropped"] and arms[1].as_dict()["interval"] is None
    assert best is arms[2] and answer.probability == 1, "it was at the target before any step"


def test_an_automatic_race_begins_as_one_of_100_steps():
    plan = auto_rungs(400)
    assert plan.ends == (50, 100, 200, 400) and plan.steps == [12, 25, 50, 100, 200, 400] and plan.rates_at == 50
    assert set(rungs(100)) <= set(plan.steps) and plan.halving == 100
    assert auto_rungs(16) == fixed_rungs(16) and auto_rungs(300).ends == (50, 100, 200, 300)
    assert auto_rungs(1000).ends == (50, 100, 200, 400, 800, 1000) and plan.next_end(51) == 100


def automatic_race(system, data, monkeypatch, folder, *, sure, stop_at=None, limit=None, seen=None):
    """An automatic race of 2, 4 or 8 steps whose steps take a second each; told at the step `sure`, judged by
    `seen`."""
    monkeypatch.setattr(rungs_module, "AUTO", 2)
    monkeypatch.setattr(rungs_module, "HALVING", 4)
    store = RaceStore(folder=folder, facts={})
    race_setup = setup_of(data, store=store, limit=limit)
    arms = [arm_of(race_setup, system, name, budget=auto_rungs(8)) for name in ("align", "lora", "finetune")]
    known = conclude

    def concluded(question, arms, running, plan, step):
        answer, best = known(question, arms, running, plan, step)
        if seen is not None:
            costs = [arm.seconds_per_step_at(step) for arm in arms]
            seen.append((step, answer, costs))
        return replace(answer, probability=0.9 if step >= sure else 0.5), best

    def on_step(arm, step):
        if stop_at == (arm.strategy.name, step):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("sanakit.swap.race.conclude", concluded)
    with STOP.installed():
        return race(race_setup, arms, budget=auto_rungs(8), on_step=on_step), arms


@pytest.mark.parametrize(("sure", "step", "stopped_by"), [(2, 2, "told"), (8, 8, "told"), (9, 8, "steps")])
def test_an_automatic_race_ends_when_it_can_tell(tiny_system, tiny_data, monkeypatch, tmp_path, sure, step, stopped_by):
    result, arms = automatic_race(tiny_system, tiny_data, monkeypatch, tmp_path, sure=sure)
    assert (result.step, result.stopped_by) == (step, stopped_by) and result.answer.told == (sure <= 8)
    assert all(arm.steps[-1] == step for arm in result.finalists) and arms[0].steps == [0]


def test_a_race_that_was_resumed_takes_the_same_decisions(tiny_system, tiny_data, monkeypatch, tmp_path):
    """Costs of steps are part of a decision: at an end that the stopped race had passed, those of then are read
    again."""
    first, again = [], []
    with pytest.raises(RaceStopped):
        automatic_race(tiny_system, tiny_data, monkeypatch, tmp_path, sure=8, stop_at=("finetune", 6), seen=first)
    result, _ = automatic_race(tiny_system, tiny_data, monkeypatch, tmp_path, sure=8, seen=again)
    assert [step for step, *_ in first] == [2, 4] and again[:2] == first and all(c > 0 for c in again[0][2][1:])
    assert (result.step, result.stopped_by) == (8, "told")


def test_a_race_begins_no_rung_that_would_not_fit_into_the_time_limit(tiny_system, tiny_data, monkeypatch, tmp_path):
    allowed = []

    class Limit(TimeLimit):
        def allows(self, seconds):
            allowed.append(seconds)
            return len(allowed) < 3

    limit = Limit(begun=0.0, seconds=1.0)
    result, arms = automatic_race(tiny_system, tiny_data, monkeypatch, tmp_path, sure=9, limit=limit)
    assert (result.step, result.stopped_by) == (2, "time") and all(seconds >= 0 for seconds in allowed)
    arms[2].seconds, arms[2].steps, arms[2].evaluation_seconds = 6.0, [0, 1, 2], 0.5
    assert seconds_needed([arms[2]], 8) == 6 * 3.0 + 0.5 and seconds_needed([arms[2]], 2) == 0
    now = __import__("time").monotonic()
    assert TimeLimit(begun=now, seconds=60).allows(50) and not TimeLimit(begun=now, seconds=60).allows(70)


def test_arms_that_start_alike_share_their_first_result(race_setup, tiny_system):
    first, second = arm_of(race_setup, tiny_system, "align"), arm_of(race_setup, tiny_system, "lora")
    system = replace(tiny_system, core=copy.deepcopy(tiny_system.core))
    shared = enter(race_setup, STRATEGIES.get("lora"), system, budget=16, alike=first)
    assert shared.steps == second.steps == [0]
    torch.testing.assert_close(shared.results[0].losses, second.results[0].losses)


def test_the_cheapest_arm_that_arrives_wins(race_setup, tiny_system):
    arms = [arm_of(race_setup, tiny_system, name) for name in ("align", "finetune")]
    result = race(replace(race_setup, target=target_of(1e3)), arms, budget=8)
    assert result.best.strategy.name == "align" and result.answer.probability == 1


@pytest.mark.parametrize(
    ("steps", "high", "told"), [(150, 420.2, 421), (150, np.inf, 300), (np.inf, np.inf, 200), (40, 60, 200)]
)
def test_how_long_a_race_would_tell(steps, high, told):
    forecast = Forecast(steps=steps, low=20, high=high, reached=steps < 100, within=0.9, horizon=2000)
    assert steps_that_tell(forecast, 100) == told


def test_an_answer_that_is_not_sure_is_inconclusive_and_said():
    raced = {"recommended": "lora", "steps_that_tell": 300, "probability": 0.582}
    said = "recommendation inconclusive: lora, right with probability .58; a race of --budget-steps 300 would tell more"
    assert in_doubt(raced | {"conclusive": False}) == said
    assert in_doubt(raced | {"conclusive": True}) == in_doubt({"recommended": None}) == ""
    earlier = {"recommended": "lora", "steps_that_tell": 300, "conclusive": False}
    assert "its interval is open" in in_doubt(earlier)


def test_what_is_spent_once_counts_but_not_where_nothing_needs_training(race_setup, tiny_system):
    """Two arms that arrived after the same steps: the one that spent time before its first step is the dearer."""
    arms = [arm_of(race_setup, tiny_system, name) for name in ("align+head", "cross-attention")]
    for arm in arms:
        arm.steps, arm.seconds, arm.seconds_at = [0, 8], 8.0, {8: 8.0}
        arm.errors_by_evaluation = [np.full(16, 2.0), np.full(16, 0.9)]
    question = Question(target=target_of(1.0), kind="vae", horizon=2000, seed=0)

    def best():
        return conclude(question, arms, arms, fixed_rungs(8), 8)[1]

    assert arms[1].trained_parameters > arms[0].trained_parameters and best() is arms[0]
    arms[0].seconds_once = 4.0
    assert best() is arms[1] and arms[0].cost(20) == 24.0 and arms[0].cost(0) == 0.0
    assert arms[0].as_dict()["predicted_hours"] == pytest.approx((4.0 + arms[0].forecast.steps) / 3600)


@pytest.mark.parametrize("name", ["align+head", "lora", "cross-attention", "finetune"])
def test_only_the_named_groups_move(race_setup, tiny_system, name):
    arm = arm_of(race_setup, tiny_system, name)
    before = {k: v.detach().clone() for k, v in arm.system.core.named_parameters()}
    race(race_setup, [arm], budget=8)
    scales = arm.strategy.scales
    from sanakit.core.dit import group_of

    for key, value in arm.system.core.named_parameters():
        moves = scales.get("lora" if ".lora_" in key else group_of(key), 0) > 0
        moved = not torch.equal(value, before[key])
        assert moved <= moves, key
        if moves and "lora_A" not in key:  # the gradient of lora_A is zero while lora_B is
            assert moved or value.numel() == 0, key


def test_lora_starts_as_the_same_core_and_folds_into_a_plain_one(race_setup, tiny_system):
    plain = held_out(tiny_system, race_setup.test).loss
    arm = arm_of(race_setup, tiny_system, "lora")
    assert held_out(arm.system, race_setup.test).loss == pytest.approx(plain, rel=1e-6)
    race(race_setup, [arm], budget=8)
    trained = held_out(arm.system, race_setup.test).loss
    arm.strategy.finish(arm.system.core)
    assert set(arm.system.core.state_dict()) == set(tiny_system.core.state_dict())
    assert held_out(arm.system, race_setup.test).loss == pytest.approx(trained, rel=1e-5)


def test_averaged_restores_the_weights(race_setup, tiny_system):
    weights = {k: v.clone() for k, v in tiny_system.core.state_dict().items()}
    with averaged(tiny_system.core, {k: torch.zeros_like(v) for k, v in weights.items()}):
        assert not any(v.any() for v in tiny_system.core.state_dict().values())
    assert all(torch.equal(v, weights[k]) for k, v in tiny_system.core.state_dict().items())


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


NAMES = ("align", "lora", "finetune")
BUDGET = 8


def whole_race(system, data, folder=None, *, trained=None, stop_at=None, by=signal.SIGTERM, facts=None):
    """A race with a sweep of two rates, on a copy of the system. stop_at: (phase, strategy, step) of a signal.

    Returns the arms, the finalists, and the steps that were trained (also in `trained`, where the race is stopped).
    """
    store = RaceStore(folder=folder, facts=facts or {"stage": "x"}) if folder else None
    race_setup = setup_of(data, store=store)
    trained = [] if trained is None else trained

    def on_step(phase, name, step):
        trained.append((name, step))
        if (phase, name, step) == stop_at:
            os.kill(os.getpid(), by)

    with STOP.installed():
        arms = []
        for name in NAMES:
            arms.append(
                at_best_rate(
                    race_setup,
                    STRATEGIES.get(name),
                    system,
                    budget=BUDGET,
                    rates=(1.0, 0.25),
                    alike=arms[0] if arms else None,
                    on_step=lambda step, name=name: on_step("rates", name, step),
                )
            )
        result = race(
            race_setup, arms, budget=BUDGET, on_step=lambda arm, step: on_step("race", arm.strategy.name, step)
        )
    return arms, result.finalists, trained


def outcome(arms, finalists):
    """What must not depend on an interruption, to the bit."""
    facts = [
        (a.strategy.name, a.options, a.steps, a.train_loss, a.scores, a.forecast, a in finalists, a.diverged)
        for a in arms
    ]
    facts += [(a.extra_steps, a.extra_losses) for a in arms]
    tensors = [torch.stack([r.losses for r in a.results]) for a in arms] + [torch.from_numpy(a.errors) for a in arms]
    tensors += [torch.from_numpy(errors) for a in arms for errors in a.extra_errors]
    for arm in arms:
        tensors += list(arm.system.core.state_dict().values()) + (list(arm.state.ema.values()) if arm.state else [])
    return facts, tensors


@pytest.fixture(scope="module")
def undisturbed():
    """Facts, tensors and number of steps of a race that nobody interrupted; made once, by the first test that asks."""
    return {}


@pytest.mark.parametrize(
    ("stop_at", "by", "step"),
    [
        (("rates", "finetune", 1), signal.SIGINT, 1),
        (("race", "lora", 5), signal.SIGUSR1, 6),
        (("race", "lora", 7), signal.SIGTERM, 8),
    ],
    ids=["at a rung of the sweep", "in the race", "before the last evaluation"],
)
def test_a_race_that_a_signal_ended_goes_on_bit_exactly_and_trains_nothing_twice(
    tiny_system, tiny_data, tmp_path, undisturbed, monkeypatch, stop_at, by, step
):
    monkeypatch.setattr(
        rungs_module, "EVALUATED_STEPS", (3, 6, 7)
    )  # the second signal comes where an evaluation is due
    torch.nn.init.normal_(tiny_system.core.proj_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    if not undisturbed:
        arms, finalists, trained = whole_race(tiny_system, tiny_data)
        undisturbed["of"] = *outcome(arms, finalists), trained
    facts, tensors, trained = undisturbed["of"]
    first: list[tuple[str, int]] = []
    with pytest.raises(RaceStopped, match=f"stopped at step {step} of 8 of {stop_at[1]}") as stop:
        whole_race(tiny_system, tiny_data, tmp_path / "race", trained=first, stop_at=stop_at, by=by)
    assert stop.value.number == by and STOP.number == 0
    kept = [path for path in (tmp_path / "race").rglob("*") if path.is_file()]
    assert kept and {path.suffix for path in kept} <= {".safetensors", ".json", ""}  # LATEST has none; no pickles

    arms, finalists, rest = whole_race(tiny_system, tiny_data, tmp_path / "race")
    again, others = outcome(arms, finalists)
    assert again == facts
    assert len(others) == len(tensors) and all(torch.equal(a, b) for a, b in zip(others, tensors, strict=True))
    assert first + rest == trained  # no step is lost, none is made twice

    arms, finalists, rest = whole_race(tiny_system, tiny_data, tmp_path / "race")
    assert rest == [] and outcome(arms, finalists)[0] == facts


KILLS = int(os.environ.get("SANAKIT_KILLS", "50"))


class Deadly(list):
    """Steps that were trained; SIGKILL ends the process that takes number `last`."""

    def __init__(self, last):
        super().__init__()
        self.last = last

    def append(self, step):
        super().append(step)
        if len(self) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.own_process
def test_random_kills_in_the_race_leave_its_outcome_as_it_is(tiny_system, tiny_data, tmp_path):
    torch.nn.init.normal_(tiny_system.core.proj_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    arms, finalists, _ = whole_race(tiny_system, tiny_data)
    facts, tensors = outcome(arms, finalists)
    chance, kills, races, folder = random.Random(0), 0, 0, tmp_path / "race-0"
    while kills < KILLS:
        trained = Deadly(chance.randint(1, 12))
        child = os.fork()
        if not child:
            arms, finalists, _ = whole_race(tiny_system, tiny_data, folder, trained=trained)
            torch.save((repr(outcome(arms, finalists)[0]), outcome(arms, finalists)[1]), tmp_path / "outcome.pt")
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL)
        kills += status != 0
        if status == 0:
            told, others = torch.load(tmp_path / "outcome.pt")
            assert told == repr(facts)
            assert len(others) == len(tensors) and all(torch.equal(a, b) for a, b in zip(others, tensors, strict=True))
            races += 1
            folder = tmp_path / f"race-{races}"
    assert races >= KILLS // 20  # kills do not keep a race from its end


def test_what_was_kept_of_another_race_or_is_damaged_starts_anew(tiny_system, tiny_data, tmp_path, capsys):
    race_setup = setup_of(tiny_data, store=RaceStore(folder=tmp_path, facts={"stage": "x"}))
    arm = arm_of(race_setup, tiny_system, "finetune")
    advance(race_setup, arm, 4)

    def again(facts):
        return arm_of(replace(race_setup, store=RaceStore(folder=tmp_path, facts=facts)), tiny_system, "finetune")

    assert again({"stage": "x"}).state.step == 4
    blob = next(tmp_path.rglob("core.safetensors"))
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    assert again({"stage": "x"}).state.step == 0
    assert "finetune starts anew" in (told := capsys.readouterr().err) and "core.safetensors is damaged" in told
    advance(race_setup, arm, 8)
    assert again({"stage": "y"}).state.step == 0
    assert "stage is x, this run has y" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_full_disk_ends_the_keeping_and_not_the_race(tiny_system, tiny_data, tmp_path, monkeypatch, capsys):
    race_setup = setup_of(tiny_data, store=RaceStore(folder=tmp_path / "race", facts={}))
    arm = arm_of(race_setup, tiny_system, "align+head")
    advance(race_setup, arm, 2)
    monkeypatch.setattr(
        "sanakit.training.checkpoint.save_tensors", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    race(race_setup, [arm], budget=16)
    assert arm.steps == [0, 2, 4, 8, 16] and "No space left" in race_setup.store.lost
    assert capsys.readouterr().err.count("not kept from here on") == 1 and not (tmp_path / "race").exists()


def diverging(monkeypatch, names, at):
    """Batches that are not finite from step `at` on, for the arms of these learning rates."""
    draw = train.draw_batch

    def spoilt(system, data, options, step, rows=slice(None)):
        batch = draw(system, data, options, step, rows)
        bad = step >= at and f"{options.learning_rate:g}" in names
        return batch.map(lambda x: x * float("nan") if x.is_floating_point() and bad else x)

    monkeypatch.setattr(train, "draw_batch", spoilt)


def test_an_arm_that_diverges_leaves_the_race_and_the_others_go_on(tiny_system, tiny_data, tmp_path, monkeypatch):
    race_setup = setup_of(tiny_data, store=RaceStore(folder=tmp_path, facts={}))
    rates = {"align+head": 0.5, "lora": 0.002, "finetune": 0.001, "naive": 0.0007}
    arms = [arm_of(race_setup, tiny_system, "align")]
    for name, rate in rates.items():
        system = replace(tiny_system, core=copy.deepcopy(tiny_system.core))
        arms.append(enter(race_setup, STRATEGIES.get(name), system, budget=16, learning_rate=rate))
    diverging(monkeypatch, ("0.5",), 3)
    result = race(race_setup, arms, budget=16)
    lost, finalists = arms[1], result.finalists
    assert lost.diverged.startswith("loss nan") and "at step 3" in lost.diverged and lost.steps == [0, 2]
    assert lost.forecast is None and lost not in finalists and len(finalists) >= 2
    assert all(a.forecast is not None for a in finalists) and result.best is not lost
    record = json.loads(json.dumps(lost.as_dict(), allow_nan=False))
    assert record["diverged"] == lost.diverged and record["predicted_steps"] is None and len(record["losses"]) == 2
    assert not list(tmp_path.glob("align+head-0.5/step-*")) and (tmp_path / "align+head-0.5" / "curve.json").is_file()
    system = replace(tiny_system, core=copy.deepcopy(tiny_system.core))
    kept = enter(race_setup, STRATEGIES.get("align+head"), system, budget=16, learning_rate=0.5)
    assert kept.diverged == lost.diverged and kept.steps == [0, 2]  # and is not trained again
    advance(race_setup, kept, 16)
    assert kept.steps == [0, 2]


def test_a_rate_that_diverges_leaves_the_sweep(tiny_system, tiny_data, monkeypatch):
    race_setup = setup_of(tiny_data)
    diverging(monkeypatch, ("0.001",), 3)
    arm = at_best_rate(race_setup, STRATEGIES.get("finetune"), tiny_system, budget=16, rates=(1.0, 0.25))
    assert not arm.diverged and arm.options.learning_rate == 0.00025
    assert arm.scores["rates"]["0.001"] is None and arm.scores["rates"]["0.00025"] > 0


def test_the_learning_rate_is_chosen_at_half_the_budget(race_setup, tiny_system, monkeypatch):
    """At a quarter the lower rate is ahead, by no more than noise at the images; at half the higher one is."""
    noise = np.random.default_rng(0).normal(size=16)
    curves = {0.002: {1: 1.4, 2: 1.31, 4: 1.1}, 0.001: {1: 1.4, 2: 1.30, 4: 1.2}, 0.00025: {1: 1.5, 2: 1.45, 4: 1.0}}
    trained = []

    def advance(race_setup, arm, until, on_step):
        rate = arm.options.learning_rate
        trained.append((rate, until))
        arm.steps.append(until)
        arm.errors_by_evaluation.append(curves[rate][until] + noise * (0.1 if rate == 0.001 else 0))

    monkeypatch.setattr("sanakit.swap.race.advance", advance)
    arm = at_best_rate(race_setup, STRATEGIES.get("finetune"), tiny_system, budget=8, rates=(1.0, 0.25, 2.0))
    assert arm.options.learning_rate == 0.002
    assert trained == [
        (0.002, 1),
        (0.002, 2),
        (0.002, 4),
        (0.001, 1),
        (0.001, 2),
        (0.001, 4),
        (0.00025, 1),
        (0.00025, 2),
    ]
    assert arm.scores["rates"] == {"0.002": 1.1, "0.001": round(1.2 + 0.1 * noise.mean(), 4), "0.00025": None}
    assert arm.scores["rates_left"] == {"0.00025": "clearly worse than 0.002 at step 2"}


def walked(search, error):
    """The rates that a search hands out, where `error` is the relative error of a rate."""
    tried = []
    while (rate := search.next_rate()) is not None:
        tried.append(rate)
        search.record(rate, error(rate), "loss nan" if np.isinf(error(rate)) else "")
    return tried


@pytest.mark.parametrize(
    ("best", "beyond"),
    [(3e-4, []), (8e-3, [5.77e-3, 1.66e-2]), (2e-6, [3.47e-6, 1.2e-6, 4.16e-7]), (1.0, [5.77e-3, 1.66e-2, 4.79e-2])],
)
def test_the_search_goes_on_while_the_best_rate_is_at_an_end_of_the_grid(best, beyond):
    search = RateSearch(rates=GRID, goes_on=True)
    tried = walked(search, lambda rate: abs(np.log(rate / best)))
    assert tried[: len(GRID)] == sorted(GRID, reverse=True) and GRID[0] == 2e-3 and GRID[-1] == 1e-5
    np.testing.assert_allclose(tried[len(GRID) :], beyond, rtol=0.01)  # three at most
    assert search.best == min(tried, key=lambda rate: abs(np.log(rate / best)))
    np.testing.assert_allclose(np.diff(np.log(GRID)), np.log(1 / 200) / 5, rtol=0.01)


def test_a_rate_that_diverges_is_no_end_of_the_grid_to_go_on_from():
    search = RateSearch(rates=GRID, goes_on=True)
    tried = walked(search, lambda rate: np.inf if rate > 1e-4 else 1 - rate)
    assert len(tried) == len(GRID) and search.best == 8.33e-5
    assert search.scores()["rates"]["0.002"] is None and search.scores()["rates_left"]["0.002"] == "diverged: loss nan"
    assert walked(RateSearch(rates=GRID, goes_on=True), lambda rate: np.inf) == sorted(GRID, reverse=True)
    assert walked(RateSearch(rates=(1e-3, 2e-3)), lambda rate: -rate) == [2e-3, 1e-3]  # no grid: what is named


def test_which_rates_are_tried_is_a_fact_of_the_base_and_the_configuration(tmp_path):
    finetune = STRATEGIES.get("finetune")

    def rates(embedded, **smoke):
        return search_of(make_config({"smoke": smoke}), finetune, embedded=embedded)

    assert list(rates(True).rates) == [0.002, 0.001, 0.00025] and not rates(True).goes_on
    assert rates(False).rates == GRID and rates(False).goes_on
    assert list(rates(False, rates=[4.0, 0.5]).rates) == [0.004, 0.0005]
    named = search_of(make_config({"train": {"learning_rate": 3e-5}}), finetune, embedded=False)
    assert named.rates == (3e-5,) and not named.is_choice

    folder = tmp_path / "tiny-sana"  # a name says nothing
    card = {"vae": "dc-f16c32", "text_encoder": "minilm", "image_size": 96, "flow_shift": 1.0}
    folder.mkdir()
    for fact, embedded in (({}, False), ({"embedded": True}, True), ({"embedded": "no"}, False)):
        (folder / "card.json").write_text(json.dumps(card | fact))
        assert load_base(f"path:{folder}").embedded is embedded
    assert load_base("tiny-sana").embedded


def test_looks_between_the_rungs_are_kept_and_change_nothing(tiny_system, tiny_data, tmp_path, monkeypatch):
    assert (
        rungs_module.EVALUATED_STEPS == (75, 150, 300)
        and evaluated_steps_between(0, 100) == [75]
        and evaluated_steps_between(75, 150) == []
    )
    straight = arm_of(setup_of(tiny_data), tiny_system, "finetune")
    race(setup_of(tiny_data), [straight], budget=16)
    monkeypatch.setattr(
        rungs_module, "EVALUATED_STEPS", (3, 4, 11, 40)
    )  # the second is a rung, the last lies beyond the budget
    race_setup = setup_of(tiny_data, store=RaceStore(folder=tmp_path, facts={}))
    arm = arm_of(race_setup, tiny_system, "finetune")
    race(race_setup, [arm], budget=16)
    assert arm.extra_steps == [3, 11] and arm.steps == straight.steps == [0, 2, 4, 8, 16]
    assert np.array_equal(arm.errors, straight.errors) and arm.forecast == straight.forecast
    assert arm.train_loss == straight.train_loss
    kept = arm_of(race_setup, tiny_system, "finetune")
    assert kept.extra_losses == arm.extra_losses and np.array_equal(kept.extra_errors, arm.extra_errors)
    record = json.loads(json.dumps(arm.as_dict()))
    assert record["extra_evaluations"]["steps"] == [3, 11] and record["extra_evaluations"]["losses"] == arm.extra_losses
    assert record["extra_evaluations"]["relative_errors"] == pytest.approx(
        [errors.mean() for errors in arm.extra_errors]
    )
    assert record["steps"] == [0, 2, 4, 8, 16] and record["train_losses"] == [list(p) for p in arm.train_loss] != []


def test_a_held_out_error_that_is_not_finite_has_diverged_too(race_setup, tiny_system, monkeypatch):
    arm = arm_of(race_setup, tiny_system, "finetune")
    monkeypatch.setattr(
        "sanakit.swap.race_setup.held_out",
        lambda *a, **k: replace(arm.results[0], losses=arm.results[0].losses * np.nan),
    )
    advance(race_setup, arm, 2)
    assert arm.diverged == "held-out loss nan after step 2" and arm.steps == [0]


def test_where_every_arm_diverged_the_race_says_so(tiny_system, tiny_data, monkeypatch):
    race_setup = setup_of(tiny_data)
    arms = [arm_of(race_setup, tiny_system, name) for name in ("align", "align+head", "finetune")]
    diverging(monkeypatch, ("0.001", "0.002"), 3)
    with pytest.raises(
        SanakitError, match=r"SK0512.*align\+head at 0.002: loss nan.*; finetune at 0.001: loss nan.*step 3"
    ):
        race(race_setup, arms, budget=16)
    there = replace(race_setup, target=target_of(1e3))  # what trains nothing is at the base's quality already
    assert race(there, arms, budget=16).best.strategy.name == "align"


def test_a_race_and_stage_full_read_the_training_section_alike(tiny_system, tiny_data):
    """Every key of the section is the loop's, of the groups, or named here as a key of stage full alone."""
    changed = {
        "batch_size": 8, "seed": 3, "weight_decay": 0.2, "max_grad_norm": 0.5, "prompt_dropout": 0.3,
        "sigmas": "uniform", "accumulate": 2, "precision": "bf16", "gradient_checkpointing": True, "max_skipped": 4,
        "optimizer": "came", "compile": True, "warmup": 1,
    }  # fmt: skip
    config = make_config({"train": changed | {"parallel": "fsdp", "ema_decay": 0.5}, "data": {"workers": 0}})
    options = options_of(config, STRATEGIES.get("finetune"))
    assert all(getattr(options, key) == value for key, value in changed.items())
    assert options.parallel == "fsdp" and options.ema_decay == 0.5 and options.workers == 0
    assert options.schedule == "constant-then-decay" and OWN_OPTIONS["schedule"] == "constant"  # a race does not decay
    groups = {"rates", "lora_rank", "layer_decay"}
    cut = {"micro_batch"}  # it becomes `accumulate` (settings.parts_of)
    full = {
        "checkpoint_every",
        "gradual",
        "target",
        "async_checkpoints",
        "hang_timeout",
        "log_every",
        "sample_every",
        "report_to",
        "start",  # read where a swap begins, by race and stage full alike
        "start_draws",
    }
    loop = {f.name for f in fields(TrainOptions)} | {"strategy"}
    assert TrainSection.model_fields.keys() == (loop - {"workers", "live_captions"}) | groups | full | cut

    usable = replace(options, optimizer="adamw", compile=False)
    arm = enter(setup_of(tiny_data, options=usable), STRATEGIES.get("finetune"), tiny_system, budget=16)
    expected = OWN_OPTIONS | {"max_steps": 16, "learning_rate": 1e-3}
    assert arm.options == replace(usable, **expected) and arm.options.parallel == "ddp"
    assert tiny_system.core.is_gradient_checkpointing


def test_rates_by_group_and_depth_are_of_the_race_too(tiny_system, tiny_data):
    config = make_config({"train": {"rates": {"input": 0.0, "core": 0.5}, "lora_rank": 3}})
    strategy = configured(config, STRATEGIES.get("finetune"))
    arm = enter(setup_of(tiny_data, layer_decay=0.5), strategy, tiny_system, budget=16)
    assert strategy.name == "finetune" and not tiny_system.core.patch_embed.proj.weight.requires_grad
    scales = {id(p): group["scale"] for group in arm.state.optimizer.param_groups for p in group["params"]}
    assert scales[id(tiny_system.core.transformer_blocks[0].ff.conv_inverted.weight)] == 0.25
    assert scales[id(tiny_system.core.transformer_blocks[1].ff.conv_inverted.weight)] == 0.5
    assert configured(config, STRATEGIES.get("lora")).lora_rank == 3


def test_a_step_that_may_be_left_out_is_named_and_spoils_no_curve(tiny_system, tiny_data, monkeypatch):
    draw = train.draw_batch

    def spoilt(system, data, options, step, rows=slice(None)):
        batch = draw(system, data, options, step, rows)
        return batch.map(lambda x: x * float("nan") if x.is_floating_point() and step == 4 else x)

    monkeypatch.setattr(train, "draw_batch", spoilt)
    race_setup = setup_of(tiny_data, options=TrainOptions(max_steps=1, batch_size=8, max_skipped=1))
    arm = arm_of(race_setup, tiny_system, "align+head")
    race(race_setup, [arm], budget=16)
    assert arm.steps == [0, 2, 4, 8, 16] and not arm.diverged and arm.as_dict()["skipped_steps"] == [4]
    assert [step for step, _ in arm.train_loss] == [10] and np.isfinite(arm.train_loss[0][1])


def test_a_time_limit_that_leaves_no_step_says_nothing_of_what_trains(tiny_system, tiny_data):
    setup = setup_of(tiny_data, limit=TimeLimit(begun=0.0, seconds=0.0), target=target_of(1.0))
    arms = [arm_of(setup, tiny_system, name) for name in ("align", "align+head", "finetune")]
    result = race(setup, arms, budget=auto_rungs(400))
    assert (result.step, result.stopped_by) == (0, "time") and not result.answer.in_sight
    assert result.answer.probability == 0.0 and not result.answer.told
    assert [arm.forecast is None for arm in arms] == [False, True, True]


def test_an_arm_that_diverges_later_stands_at_the_rungs_before(tiny_system, tiny_data):
    """A race that is resumed knows of it from the beginning, and must drop the same arms as the first time."""
    setup, plan = setup_of(tiny_data), fixed_rungs(100)
    rng, arms = np.random.default_rng(0), []
    shared = rng.normal(size=16) * 0.02
    for level, name in zip((1.0, 1.1, 1.2, 1.3), ("align+head", "finetune", "lora", "naive"), strict=True):
        arm = arm_of(setup, tiny_system, name, budget=100)
        arm.steps = [0, *plan.steps]
        arm.errors_by_evaluation = [level + shared + rng.normal(size=16) * 0.01 for _ in arm.steps]
        arms.append(arm)
    first = arms[0]
    first.diverged, first.steps = "loss nan at step 80", [step for step in first.steps if step <= 50]
    first.errors_by_evaluation = first.errors_by_evaluation[: len(first.steps)]
    result = race(setup, arms, budget=100)
    assert [arm.strategy.name for arm in result.finalists] == ["finetune"] and first.forecast is None
    assert all(arm.dropped.startswith("clearly worse than finetune at step 25") for arm in arms[2:])
    assert seconds_needed([first], 100) == 0
