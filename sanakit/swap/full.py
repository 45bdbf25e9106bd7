"""Stage full: train the recommended strategy to the end, watched, resumable, and write the model."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sanakit.adapters import adapters_of, attach
from sanakit.assembly import LatentDiffusion
from sanakit.checks.measure_training import SPREAD_SAMPLES, sample_evidence
from sanakit.config import MonitorsSection
from sanakit.data.dataset import LatentDataset
from sanakit.distributed import is_main, local
from sanakit.errors import SanakitError
from sanakit.evaluation.blind import conditional_gain
from sanakit.evaluation.figures import save_compared, save_grid
from sanakit.evaluation.held_out import HeldOut, held_out
from sanakit.interop.lora import save_lora
from sanakit.sampling import sample_side_by_side
from sanakit.strategies.base import Strategy
from sanakit.swap import evaluated, recorded
from sanakit.swap.core_journal import CoreJournal
from sanakit.swap.distill import Teacher
from sanakit.swap.early import require_that_prompts_matter
from sanakit.swap.encoder_training import as_encoded_now, encoder_group, trainable_copy
from sanakit.swap.full_steps import decide_steps
from sanakit.swap.gradual import join_gradually
from sanakit.swap.journal import go_on_from
from sanakit.swap.model_folder import gathered, write_model
from sanakit.swap.resume import resume_facts
from sanakit.swap.settings import options_of, strategy_of
from sanakit.swap.start import Built, build_start, choose_start, starting_at
from sanakit.text_encoders import TextEncoder
from sanakit.training.loop import TrainOptions, fit, layer_groups, new_state
from sanakit.training.monitors import make_monitors
from sanakit.training.parameters import parameter_digests
from sanakit.training.state import park

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

REFERENCE = 1024  # images or captions that a stream is compared with


def train_full(swap: "Swap") -> dict[str, Any]:
    """Train to train.max_steps; returns the evidence of stage full. swap.resume: auto, never, or a checkpoint folder.

    A signal saves at the next step border and exits with 143, or 130 for Ctrl-C.
    """
    raced = recorded.raced(swap)
    config = swap.config = decide_steps(swap.config, raced, run_dir=str(swap.run.path))
    evaluated.require(config)
    require_that_prompts_matter(swap)
    test, strategy = swap.candidate_data[1], strategy_of(config, raced)
    system = starting_system(swap, strategy)
    encoder: TextEncoder | None = None
    if config.text_encoder.learning_rate:
        encoder = trainable_copy(system.text_encoder, gradient_checkpointing=config.text_encoder.gradient_checkpointing)
        system.text_encoder = encoder

    count = swap.num_held_out

    def as_now() -> LatentDataset:
        return as_encoded_now(system, test, count) if encoder else test

    def evaluate() -> HeldOut:
        now = as_now()
        return held_out(system, now, count=count)

    assert swap.target is not None  # what the verdict needs is there before anything is trained
    start = evaluate()
    with torch.random.fork_rng():  # adapters are drawn
        torch.manual_seed(config.train.seed)
        groups = strategy.parameter_groups(system.core)
    groups = layer_groups(system.core, groups, config.train.layer_decay)
    share, steps = config.train.gradual, config.train.steps
    groups = join_gradually(system.core, groups, kind=config.kind, share=share, max_steps=steps)
    if encoder and (strategy.teacher or not groups):
        what = "learns from the base's own images" if strategy.teacher else "trains no core beside it"
        raise SanakitError(
            "SK0104", f"text_encoder.learning_rate: strategy {strategy.name} {what}", fix="Use finetune."
        )
    journal = train(swap, strategy, system, groups, encoder, evaluate) if groups else None

    end, now = evaluate(), as_now()
    swap.progress("sampling", 0, 2)
    draw_samples(swap, system, strategy.name)
    evaluated.evaluate_samples(swap, system)
    write_model(swap, system, strategy.name, end, with_encoder=encoder is not None)
    start_losses = {"start_losses": start.losses.mean(0).numpy()} if groups else {}  # else nothing is trained
    return (
        start_losses
        | {
            "start_at_base": swap.target.reached(start),
            "end_losses": end.losses.mean(0).numpy(),
            "relative_error": swap.target.relative(end),
            "base_relative_error": swap.target.base,
        }
        | drift_evidence(config.monitors, journal, strategy)
        | prompt_gains(swap, system, now)
        | sample_evidence(
            system, test, swap.sample_prompts(SPREAD_SAMPLES), config.train.seed, at_once=config.smoke.samples
        )
    )


def drift_evidence(section: MonitorsSection, journal: CoreJournal | None, strategy: type[Strategy]) -> dict[str, int]:
    """Alarms of the data streams; {} where none was watched: nothing was trained, the strategy draws its own batches,
    or the monitor of latents is off."""
    if journal is None or strategy.teacher:
        return {}
    unwatched = section.latents == "off" and not journal.drift_alarms  # those of captions count
    return {} if unwatched else {"drift_alarms": journal.drift_alarms}


def prompt_gains(swap: "Swap", system: LatentDiffusion, data: LatentDataset) -> dict[str, Any]:
    """What prompts are worth to a system and to the base on the same held-out images, each in its own latents.
    (N,) each"""
    target = swap.target
    base_weights = target.weights if target.base_weights is None else target.base_weights
    base_gain = base_weights @ (swap.base_blind.losses - swap.base_held_out.losses).double().numpy()
    gain = conditional_gain(system, data, count=swap.num_held_out, weights=torch.from_numpy(target.weights))
    return {
        "prompt_gain": gain.numpy(),
        "base_prompt_gain": base_gain,
        "same_latents": target.base_weights is None,
    }


def gains_by_caption(gains: dict[str, Any], data: LatentDataset) -> dict[str, dict[str, float]]:
    """`prompt_gains` in the mean over all held-out images and, where the data states kinds of captions, by kind: the
    candidate's, the base's, and the number of images."""
    candidate, base = gains["prompt_gain"], gains["base_prompt_gain"]
    groups = {"all": torch.arange(len(candidate))} | data.places_by_kind(len(candidate))
    return {
        kind: {"candidate": float(candidate[rows].mean()), "base": float(base[rows].mean()), "images": len(rows)}
        for kind, rows in groups.items()
        if len(rows)
    }


def starting_system(swap: "Swap", strategy: type[Strategy]) -> LatentDiffusion:
    """The swapped system as the strategy starts it; without a candidate the base goes on with its own weights, an
    adapter added as the identity."""
    if swap.config.candidate is None and strategy.initialise != "scratch":
        system, name = swap.base.system(placement=swap.placement), strategy.adapter
        if name and name not in adapters_of(system.core):
            attach(system.core, name, seed=swap.config.train.seed)
        return system
    built: dict[str, LatentDiffusion] = {}

    def started(one: type[Strategy]) -> Built:
        system, scores = build_start(swap, one)
        built[one.initialise] = system
        return system, scores

    following = starting_at(strategy, choose_start(swap, [strategy], started, again=False))
    return built.get(following.initialise) or started(following)[0]


def train(
    swap: "Swap",
    strategy: type[Strategy],
    system: LatentDiffusion,
    groups: list[dict],
    encoder: TextEncoder | None,
    evaluate: Any,
) -> CoreJournal:
    """From the start, or where an earlier run stopped, to the last step; the system then holds the trained core, the
    average where one is kept. encoder: the system's own, where it is trained too."""
    config = swap.config
    options = replace(options_of(config, strategy), live_captions=encoder is not None)
    if encoder:
        assert config.text_encoder.learning_rate
        groups.append(encoder_group(encoder, config.text_encoder.learning_rate, options.learning_rate))
    state = new_state(system.core, groups, options, encoder, swap.placement)
    untouched = parameter_digests(state.module)
    facts = resume_facts(swap, strategy.name, options.learning_rate)
    checkpoints = go_on_from(swap, state, options, facts)

    stream = swap.stream(system)
    base = (swap.base_system, swap.base_data[0])
    reference = reference_latents(stream) if stream.members else None
    draw = teacher_draws(swap, strategy, system, options)
    journal = CoreJournal(
        swap=swap,
        name=strategy.name,
        strategy=strategy,
        system=system,
        options=options,
        state=state,
        checkpoints=checkpoints,
        facts=facts,
        untouched=untouched,
        monitors=make_monitors(
            config.monitors, system, stream, base, options, latents=reference, trained_text=encoder is not None
        ),
        measure=evaluate,
        failures=stream.failures,
    )
    after_step, rate, watch = journal.after_step, journal.rate, journal.watch
    journal.run(partial(fit, system, stream, options, state, after_step=after_step, rate=rate, draw=draw, watch=watch))
    keep_result(journal, encoder)
    park(state)
    return journal


def teacher_draws(swap: "Swap", strategy: type[Strategy], system: LatentDiffusion, options: TrainOptions) -> Any:
    """Batches of the base's own trajectories for a strategy that learns from them; None for any other."""
    if not strategy.teacher:
        return None
    teacher = Teacher(base=swap.base_system, data=swap.base_data[0], seed=swap.config.train.seed)
    return teacher.draws(system, swap.candidate_data[0], options)


def keep_result(journal: CoreJournal, encoder: TextEncoder | None) -> None:
    """Put the trained weights, averaged where an average is kept, into the system as a plain core. encoder: the one
    that was trained too, frozen from now on."""
    state, system, strategy = journal.state, journal.system, journal.strategy
    if state.ema is not None:
        for key, value in state.module.state_dict().items():
            local(value).copy_(state.ema[key])
    system.core = gathered(system.core, strategy)
    if strategy.lora_rank and is_main():
        save_lora(system.core, journal.swap.run.path / "lora", base=journal.swap.base_system.core)
    strategy.finish(system.core)
    if encoder:
        encoder.eval().requires_grad_(False)


def draw_samples(swap: "Swap", system: LatentDiffusion, name: str) -> None:
    """Images of the base and of the trained system for the same prompts and noise, and their figures."""
    seed = swap.config.train.seed
    prompts = {side: swap.sample_prompts(base=side == "base") for side in ("base", "candidate")}
    images = sample_side_by_side({"base": swap.base_system, "candidate": system}, prompts, seed=seed)
    titles = {"base": "base", "candidate": f"candidate, after full training with {name}"}

    def grid(label: str) -> Any:
        return save_grid(
            swap.run.path, f"samples-full-{label}", images[label], "samples", titles[label], "; ".join(prompts[label])
        )

    truth, splits = swap.sample_truth()
    told = list(zip(prompts["candidate"], splits, strict=True))
    compared = save_compared(swap.run.path, "full", told, {"truth": truth} | images)
    swap.add_figures("full", [grid(label) for label in images] + compared)


def reference_latents(stream: LatentDataset) -> list[Tensor]:
    """Normalised latents that a stream in buckets is compared with, a part of every bucket."""
    share = REFERENCE / len(stream)
    chosen = [m[torch.linspace(0, len(m) - 1, max(1, round(share * len(m)))).long()] for m in stream.members]
    return [stream.draw(rows, torch.zeros_like(rows), torch.Generator(), rows) for rows in chosen]
