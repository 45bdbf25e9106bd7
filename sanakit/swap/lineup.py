"""From a configuration to a race: which strategies run, how each starts, where they are kept,
and what a signal leaves."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from sanakit import __version__
from sanakit.adapters.base import adapter_class_of
from sanakit.alignment import feature_distance
from sanakit.assembly import LatentDiffusion
from sanakit.config import Config
from sanakit.contracts import GateResult
from sanakit.distributed import exit_code, is_main
from sanakit.errors import SanakitError
from sanakit.strategies.base import Strategy, strategy_named
from sanakit.swap.arm import Arm
from sanakit.swap.distill import Teacher
from sanakit.swap.ending import RaceResult, TimeLimit
from sanakit.swap.plan import applicable, describe_plan, swap_core
from sanakit.swap.plan_remarks import adapter_remark, controls_remark, mask_remark
from sanakit.swap.plugins import sound_strategies
from sanakit.swap.race import RaceStopped, at_best_rate, race, raced_options
from sanakit.swap.race_setup import RaceSetup
from sanakit.swap.race_store import RaceStore
from sanakit.swap.rates import search_of
from sanakit.swap.settings import configured, horizon_of, options_of, rungs_in, with_adapter
from sanakit.swap.start import build_start, choose_start, start_needs, start_remark, starting_at, tokens_of
from sanakit.vaes import VAE

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

DISTANCE_SIGMAS = (0.1, 0.5, 0.9)

JOINED = "finetune"  # what races with the adapter of `adapter.name`, beside the plain cores

Starts = dict[tuple[str, str], tuple[LatentDiffusion, dict[str, Any]]]  # by `Strategy.start_key`


def raced_names(swap: "Swap") -> tuple[list[str], list[GateResult]]:
    """The strategy that is asked for, or those of `smoke.strategies` that serve the swap, plain cores, and with an
    adapter finetune joined by it; and a row for each one of a plugin that cannot race."""
    config = swap.config
    automatic = config.train.strategy == "auto"
    wanted = list(config.smoke.strategies) if automatic else [config.train.strategy]
    names, broken = sound_strategies(wanted, swap.base_system.core)
    if not automatic:
        return [with_adapter(config, name) for name in names], broken
    names = applicable(names, swap.base_system, swap.candidate) if names else []
    joined = with_adapter(config, JOINED)
    return names + ([joined] if names and joined != JOINED else []), broken


def resting_controls(config: Config, names: list[str]) -> list[str]:
    """The controls among the names that are evaluated before any step and do not race: all without `smoke.controls`,
    none where nothing else would race."""
    controls = [name for name in names if strategy_named(name).control]
    return [] if config.smoke.controls or len(controls) == len(names) else controls


def write_plan(swap: "Swap", names: list[str]) -> None:
    """plan.json."""
    config, base, candidate = swap.config, swap.base_system, swap.candidate
    is_vae, seed, strategies = isinstance(candidate, VAE), config.train.seed, [strategy_named(name) for name in names]
    adapter_class_of(config.adapter.name, is_vae, candidate.name)  # refused before anything is measured
    plain = swap_core(base, candidate, seed)
    joined = {s.name: swap_core(base, candidate, seed, s.adapter) for s in strategies if s.adapter}
    core = next(iter(joined.values())) if len(joined) == len(names) else plain
    resting = resting_controls(config, names)
    plan = describe_plan(base, candidate, core, names, resting)
    plan |= {"base": swap.base.name, "candidate": config.candidate}
    shape = candidate.spec.shape(base.image_size, base.image_size) if isinstance(candidate, VAE) else base.latent_shape
    needs = start_needs(config, core, shape, strategies)
    remarks = [mask_remark(base, swap.base_data[1]), start_remark(base.num_tokens, tokens_of(core, shape), needs)]
    remarks += [adapter_remark(s, plain, joined[s.name]) for s in strategies if s.adapter]
    remarks += [controls_remark(resting)]
    plan["notes"] += [remark for remark in remarks if remark]
    plan |= needs
    swap.run.write_json("plan.json", plan)


def race_store(swap: "Swap") -> RaceStore:
    """RUN/race, with what must agree: everything that the stage measures, and the version that measures it."""
    facts = {"stage": swap.fingerprint("smoke"), "sanakit": __version__}
    return RaceStore(folder=swap.run.path / "race", facts=facts)


def setup_of(swap: "Swap") -> RaceSetup:
    """What the arms of this swap share."""
    seed = swap.config.train.seed
    train, test = swap.candidate_data
    store, minutes = race_store(swap), swap.config.smoke.time_limit
    if swap.resume == "never":
        store.clear()
    return RaceSetup(
        data=train,
        test=test,
        target=swap.target,
        count=swap.num_held_out,
        options=options_of(swap.config, Strategy),
        layer_decay=swap.config.train.layer_decay,
        teacher=Teacher(base=swap.base_system, data=swap.base_data[0], seed=seed),
        store=store,
        kind=swap.config.kind,
        horizon=horizon_of(swap.config, embedded=swap.base.embedded),
        limit=TimeLimit(begun=swap.begun, seconds=60 * minutes) if minutes else None,
    )


def run_race(swap: "Swap", names: list[str]) -> tuple[list[Arm], RaceResult, Starts]:
    """The arms of the strategies, what the race of them says, and how they started.

    A signal ends it at the step border and exits with 143, or 130 for Ctrl-C; the same command goes on. Raises SK0512
    where every arm diverged.
    """
    setup = setup_of(swap)
    assert setup.store is not None
    arms: list[Arm] = []
    starts: Starts = {}
    with stopping(setup.store):
        strategies, resting = [strategy_named(name) for name in names], resting_controls(swap.config, names)
        begin = choose_start(swap, strategies, lambda one: _started(swap, one, starts))
        for number, name in enumerate(names):
            swap.progress(f"preparing {name}", number, len(names))
            strategy = starting_at(strategies[number], begin)
            arms.append(
                _evaluate_control(swap, setup, strategy, starts)
                if name in resting
                else _arm(swap, setup, strategy, starts, arms)
            )
        if setup.store.restored and is_main():
            print(f"race: goes on with what was kept: {', '.join(setup.store.restored)}", file=sys.stderr)
        plan = rungs_in(swap.config)
        result = race(
            setup,
            [arm for arm in arms if arm.raced],
            budget=plan,
            on_step=lambda arm, step: swap.progress(f"racing {arm.strategy.name}", step, plan.next_end(step)),
        )
    for arm in arms:
        if arm.diverged and is_main():
            print(f"race: {arm.strategy.name} left the race: {arm.diverged}", file=sys.stderr)
        skipped = arm.state.skipped if arm.state else []
        reason = "loss or gradient not finite: step left out"
        rows = [{"name": f"race of {arm.strategy.name}, step {step}", "reason": reason} for step in skipped]
        swap.run.append("ledger.jsonl", rows)
    return arms, result, starts


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
    if strategy.start_key() not in starts:
        system, scores = build_start(swap, strategy)
        starts[strategy.start_key()] = system, scores | {"feature_distance": _distance(swap, system)}
    return starts[strategy.start_key()]


def _evaluate_control(swap: "Swap", setup: RaceSetup, strategy: type[Strategy], starts: Starts) -> Arm:
    """A control that does not race, evaluated before any step."""
    start, scores = _started(swap, strategy, starts)
    options = raced_options(setup.options, rungs_in(swap.config), strategy.learning_rate)
    arm = Arm(strategy=strategy, system=start, options=options, raced=False)
    setup.evaluate(arm)
    arm.scores |= scores | {"start": strategy.initialise}
    return arm


def _arm(swap: "Swap", setup: RaceSetup, strategy: type[Strategy], starts: Starts, arms: list[Arm]) -> Arm:
    """A strategy at its best rate; strategies that start alike are first evaluated once."""
    config, name = swap.config, strategy.name
    if strategy.scales:
        strategy = configured(config, strategy)
    start, scores = _started(swap, strategy, starts)
    plan = rungs_in(config)
    arm = at_best_rate(
        setup,
        strategy,
        start,
        budget=plan,
        search=search_of(config, strategy, embedded=swap.base.embedded),
        alike=next((arm for arm in arms if arm.strategy.start_key() == strategy.start_key()), None),
        on_step=lambda step: swap.progress(f"rates of {name}", step, plan.rates_at),
    )
    arm.scores |= scores | {"start": strategy.initialise}
    return arm


def _distance(swap: "Swap", system: LatentDiffusion) -> dict[str, list[float]]:
    """Feature distance to the base by sigma and depth on held-out images, before any step."""
    candidate_test, theirs = swap.candidate_data[1], swap.base_data[1]
    rows = torch.arange(min(64, len(candidate_test)))
    latents = candidate_test.latents[rows, 0], theirs.latents[rows, 0]
    prompts = candidate_test.evaluation_prompts(rows), theirs.evaluation_prompts(rows)
    distances = {
        f"{sigma:g}": feature_distance(system, swap.base_system, *latents, *prompts, sigma=sigma)
        for sigma in DISTANCE_SIGMAS
    }
    return {sigma: [round(value, 5) for value in values] for sigma, values in distances.items()}
