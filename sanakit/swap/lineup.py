"""From a configuration to a race: which strategies run, how each starts, where they are kept, and what a signal leaves."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from sanakit import __version__
from sanakit.alignment import feature_distance
from sanakit.assembly import LatentDiffusion
from sanakit.contracts import GateResult
from sanakit.distributed import exit_code, is_main
from sanakit.errors import SanakitError
from sanakit.swap.arm import Arm
from sanakit.swap.base import STRATEGIES, Strategy
from sanakit.swap.distill import Teacher
from sanakit.swap.plan import applicable, describe_plan, mask_remark, swap_core
from sanakit.swap.plugins import sound_strategies
from sanakit.swap.race import Course, RaceStopped, at_best_rate, race
from sanakit.swap.race_store import RaceStore
from sanakit.swap.settings import configured, options_of
from sanakit.swap.start import build_start, choose_start, start_needs, start_remark, starting_at, tokens_of
from sanakit.vaes import VAE

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

DISTANCE_SIGMAS = (0.1, 0.5, 0.9)

Starts = dict[str, tuple[LatentDiffusion, dict[str, Any]]]


def raced_names(swap: "Swap") -> tuple[list[str], list[GateResult]]:
    """The strategy that is asked for, or those of `smoke.strategies` that serve the swap; and a row for each one of a
    plugin that cannot race."""
    config = swap.config
    automatic = config.train.strategy == "auto"
    wanted = list(config.smoke.strategies) if automatic else [config.train.strategy]
    names, broken = sound_strategies(wanted, swap.base_system.core)
    return (applicable(names, swap.base_system, swap.candidate) if automatic and names else names), broken


def write_plan(swap: "Swap", names: list[str]) -> None:
    """plan.json."""
    config, base, candidate = swap.config, swap.base_system, swap.candidate
    core = swap_core(base, candidate, config.train.seed, config.adapter.name)
    plan = describe_plan(base, candidate, core, names) | {"base": swap.base.name, "candidate": config.candidate}
    shape = candidate.spec.shape(base.image_size, base.image_size) if isinstance(candidate, VAE) else base.latent_shape
    needs = start_needs(config, core, shape, [STRATEGIES.get(name) for name in names])
    remarks = mask_remark(base, swap.base_data[1]), start_remark(base.num_tokens, tokens_of(core, shape), needs)
    plan["notes"] += [remark for remark in remarks if remark]
    plan |= needs
    swap.run.write_json("plan.json", plan)


def race_store(swap: "Swap") -> RaceStore:
    """RUN/race, with what must agree: everything that the stage measures, and the version that measures it."""
    facts = {"stage": swap.fingerprint("smoke"), "sanakit": __version__}
    return RaceStore(folder=swap.run.path / "race", facts=facts)


def course_of(swap: "Swap") -> Course:
    """What the arms of this swap share."""
    seed = swap.config.train.seed
    train, test = swap.candidate_data
    store = race_store(swap)
    if swap.resume == "never":
        store.clear()
    return Course(
        data=train,
        test=test,
        target=swap.target,
        count=swap.num_held_out,
        options=options_of(swap.config, Strategy),
        layer_decay=swap.config.train.layer_decay,
        teacher=Teacher(base=swap.base_system, data=swap.base_data[0], seed=seed),
        store=store,
    )


def run_race(swap: "Swap", names: list[str]) -> tuple[list[Arm], list[Arm], Starts]:
    """The arms of the strategies, those that ran to the end, and how they started, by `initialise`.

    A signal ends it at the step border and exits with 143, or 130 for Ctrl-C; the same command goes on. Raises SK0512
    where every arm diverged.
    """
    course = course_of(swap)
    assert course.store is not None
    arms: list[Arm] = []
    starts: Starts = {}
    with stopping(course.store):
        begin = choose_start(swap, [STRATEGIES.get(name) for name in names], lambda one: _started(swap, one, starts))
        for number, name in enumerate(names):
            swap.progress(f"preparing {name}", number, len(names))
            strategy = starting_at(STRATEGIES.get(name), begin)
            arms.append(_arm(swap, course, strategy, starts, arms))
        if course.store.restored and is_main():
            print(f"race: goes on with what was kept: {', '.join(course.store.restored)}", file=sys.stderr)
        budget = swap.config.smoke.budget_steps
        finalists = race(
            course,
            arms,
            budget=budget,
            on_step=lambda arm, step: swap.progress(f"racing {arm.strategy.name}", step, budget),
        )
    for arm in arms:
        if arm.diverged and is_main():
            print(f"race: {arm.strategy.name} left the race: {arm.diverged}", file=sys.stderr)
        skipped = arm.state.skipped if arm.state else []
        reason = "loss or gradient not finite: step left out"
        rows = [{"name": f"race of {arm.strategy.name}, step {step}", "reason": reason} for step in skipped]
        swap.run.append("ledger.jsonl", rows)
    return arms, finalists, starts


@contextmanager
def stopping(store: RaceStore) -> Iterator[None]:
    """Ends the process with the signal's exit code where a signal stops what trains inside, and says what was kept."""
    try:
        yield
    except RaceStopped as stop:
        kept = (
            f"what was measured could not be kept ({store.lost}): the same command starts the race anew"
            if store.lost
            else f"what was measured is kept in {store.folder}; the same command goes on"
        )
        if is_main():
            print(f"{stop}; {kept}", file=sys.stderr)
        sys.exit(exit_code(stop.number))
    except SanakitError as error:
        if error.code == "SK0512":
            store.clear()  # so that the same command tries again
        raise


def _started(swap: "Swap", strategy: type[Strategy], starts: Starts) -> tuple[LatentDiffusion, dict[str, Any]]:
    """How a strategy starts; strategies that start alike are built once."""
    if strategy.initialise not in starts:
        system, scores = build_start(swap, strategy)
        starts[strategy.initialise] = system, scores | {"feature_distance": _distance(swap, system)}
    return starts[strategy.initialise]


def _arm(swap: "Swap", course: Course, strategy: type[Strategy], starts: Starts, arms: list[Arm]) -> Arm:
    """A strategy at its best rate; strategies that start alike are first evaluated once."""
    config, name = swap.config, strategy.name
    if strategy.scales:
        strategy = configured(config, strategy)
    start, scores = _started(swap, strategy, starts)
    own, budget = config.train.learning_rate, config.smoke.budget_steps
    arm = at_best_rate(
        course,
        strategy,
        start,
        budget=budget,
        rates=(own / strategy.learning_rate,) if own else config.smoke.rates,
        alike=next((arm for arm in arms if arm.strategy.initialise == strategy.initialise), None),
        on_step=lambda step: swap.progress(f"rates of {name}", step, budget // 4),
    )
    arm.scores |= scores | {"start": strategy.initialise}
    return arm


def _distance(swap: "Swap", system: LatentDiffusion) -> dict[str, list[float]]:
    """Feature distance to the base by sigma and depth on held-out images, before any step."""
    own, theirs = swap.candidate_data[1], swap.base_data[1]
    rows = torch.arange(min(64, len(own)))
    latents = own.latents[rows, 0], theirs.latents[rows, 0]
    prompts = own.evaluation_prompts(rows), theirs.evaluation_prompts(rows)
    distances = {
        f"{sigma:g}": feature_distance(system, swap.base_system, *latents, *prompts, sigma=sigma)
        for sigma in DISTANCE_SIGMAS
    }
    return {sigma: [round(value, 5) for value in found] for sigma, found in distances.items()}
