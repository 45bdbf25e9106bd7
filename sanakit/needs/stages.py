"""Every stage's phases: what is on the device at the same time, how many at once, steps, operations; and host and disk.

The rule of placement (docs/architecture.md): a part is on the device while it works. So a phase holds one VAE, or one
text encoder, or one training state, and a stage needs the most of its phases.
"""

from collections.abc import Sequence
from functools import cache

from sanakit.checks.measure_training import SPREAD_SAMPLES
from sanakit.config import Config
from sanakit.errors import SanakitError
from sanakit.evaluation.held_out import CHUNK
from sanakit.flow import EVAL_SIGMAS
from sanakit.needs.encoding import caption_phase, encoding, vae_phases, with_live
from sanakit.needs.fit import Assumed
from sanakit.needs.reading import read_data, screening
from sanakit.needs.records import Needs, Phase
from sanakit.needs.samples import SAMPLER_STEPS, scored_samples
from sanakit.needs.storage import disk_bytes, host_bytes
from sanakit.needs.swap import Outlines, core_bytes, outline_swap
from sanakit.strategies.base import STRATEGIES, Strategy, strategy_named
from sanakit.swap.early import require_base
from sanakit.swap.fitting import cut, fitting
from sanakit.swap.lineup import resting_controls
from sanakit.swap.race import raced_options
from sanakit.swap.rates import search_of
from sanakit.swap.settings import configured, horizon_of, options_of, rungs_in, strategy_of, with_adapter
from sanakit.training.estimate import Estimate, fake_core
from sanakit.training.loop import TrainOptions

HEAD_DRAWS, ALIGN_CHUNK = 2048, 128  # alignment.vae.align_output


def needs_of(
    config: Config,
    stages: Sequence[str],
    assumed: Assumed,
    *,
    world_size: int = 1,
    num_images: int | None = None,
) -> Needs:
    """What the stages need on a rank. num_images: of the data, counted where it is None. Raises SK0104 for what has no
    estimate (a text encoder or VAE that is trained), or what loading a configuration raises."""
    if config.trains_vae_alone or config.text_encoder.learning_rate:
        raise SanakitError(
            "SK0104",
            "the dry run tells what runs of the core need: train.target vae, vae-decoder and "
            "text_encoder.learning_rate train another part",
            fix="Leave them out to see what the rest needs.",
        )
    require_base(config, stages)
    outlines = outline_swap(config, assumed, world_size)
    config = outlines.config
    images = len(read_data(config)) if num_images is None else num_images
    choice = _cut(outlines, options_of(assumed.resolved(config), STRATEGIES.get("finetune"), world_size))
    config = assumed.resolved(config, *choice)
    outlines.config = config
    arms = _arms(outlines)
    estimates = {
        arm.name: outlines.step(arm, raced_options(options_of(config, arm, world_size), rungs_in(config), 1e-3))
        for arm in arms
    }
    final = strategy_of(config, {})
    whole = outlines.step(final, options_of(config, final, world_size))
    phases = [screening(images, stages[0])]
    if "component" in stages:
        phases += _component(outlines)
    if "smoke" in stages:
        phases += encoding(outlines, images) + _alignment(outlines)
        phases += [with_live(_race(outlines, arm, estimates[arm.name]), outlines) for arm in arms]
        phases += _evaluation(outlines, "smoke", _largest(estimates, whole), len(rungs_in(config).steps))
    if "full" in stages:
        phases += [] if "smoke" in stages else encoding(outlines, images, "full")
        phases += [with_live(_training(outlines, final, whole), outlines)]
        phases += _evaluation(outlines, "full", whole, config.monitors.num_evaluations)
        phases += scored_samples(outlines)
    return Needs(
        config=config,
        world_size=world_size,
        num_images=images,
        phases=phases,
        host=host_bytes(outlines, arms if "smoke" in stages else [], estimates, whole, images),
        disk=disk_bytes(outlines, stages, _largest(estimates, whole), whole, images),
        train={
            "precision": config.train.precision,
            "gradient_checkpointing": config.train.gradient_checkpointing,
            "micro_batch": config.train.micro_batch,
            "batch_size": config.train.batch_size,
            "strategy": final.name,
        },
        step_flops=whole.flops,
        notes=_notes(outlines),
    )


def _notes(outlines: Outlines) -> list[str]:
    base = outlines.base
    return [f"{base.name}: its published configuration, nothing was read"] if base.recorded else []


def _cut(outlines: Outlines, options: TrainOptions) -> tuple[bool, int]:
    """Checkpointing and micro-batch as a run chooses them (swap/fitting.py), for a state that trains every layer."""
    train, world = outlines.config.train, outlines.world_size
    whole = max(1, train.batch_size // world // train.accumulate)
    if outlines.assumed.memory is None:
        stated = whole if train.micro_batch == "auto" else int(train.micro_batch)
        return train.gradient_checkpointing is True, stated

    @cache
    def peak(checkpointing: bool, micro: int) -> int:
        return outlines.step(STRATEGIES.get("finetune"), cut(options, checkpointing, micro, world)).peak

    return fitting(
        peak,
        outlines.assumed.room or 0,
        whole,
        checkpointing=train.gradient_checkpointing,
        micro_batch=train.micro_batch,
    )


def _arms(outlines: Outlines) -> list[type[Strategy]]:
    """The strategies that a race trains."""
    config = outlines.config
    names = list(config.smoke.strategies) if config.train.strategy == "auto" else [config.train.strategy]
    if config.train.strategy == "auto" and with_adapter(config, "finetune") != "finetune":
        names.append(with_adapter(config, "finetune"))
    known = [name for name in names if config.kind in strategy_named(name).kinds]
    resting = resting_controls(config, known)
    racing = [strategy_named(name) for name in known if name not in resting]
    return [configured(config, strategy) for strategy in racing if strategy.scales]


def _component(outlines: Outlines) -> list[Phase]:
    config = outlines.config
    if config.kind == "vae":
        return [
            phase
            for side, vae in reversed(outlines.vaes.items())
            for phase in vae_phases(outlines, vae, side, "component", config.component.num_images, most=16)
        ]
    count = config.component.num_images
    return [caption_phase(outlines, e, side, "component", count) for side, e in reversed(outlines.encoders.items())]


def _alignment(outlines: Outlines) -> list[Phase]:
    """Both cores as they were loaded: closed forms are solved in fp32."""
    base, _ = fake_core(outlines.base.core, adapters=outlines.base.adapters)
    core, mode = outlines.core()
    activations, flops = outlines.forward(core, mode, ALIGN_CHUNK, "fp32")
    weights = {"base": core_bytes(base), "core": core_bytes(core)}
    return [
        Phase(
            stage="smoke",
            name="align in closed form",
            device=weights | {"activations": activations},
            at_once=ALIGN_CHUNK,
            flops=HEAD_DRAWS // ALIGN_CHUNK * flops,
            shared=False,
        )
    ]


def _race(outlines: Outlines, arm: type[Strategy], estimate: Estimate) -> Phase:
    config, race = outlines.config, rungs_in(outlines.config)
    rates = search_of(config, arm, embedded=outlines.base.embedded).rates
    steps = (len(rates) - 1) * race.rates_at + race.last
    return Phase(
        stage="smoke",
        name=f"train {arm.name}",
        device=_parts(estimate),
        at_once=int(config.train.micro_batch),
        steps=steps,
        flops=steps * estimate.flops,
    )


def _training(outlines: Outlines, strategy: type[Strategy], estimate: Estimate) -> Phase:
    """Of the steps that are stated; without them of the horizon, the most that stage full takes from a race."""
    config = outlines.config
    stated = config.train.max_steps
    steps = stated or horizon_of(config, embedded=outlines.base.embedded)
    return Phase(
        stage="full",
        name=f"train {strategy.name}" + ("" if stated else ", at most"),
        device=_parts(estimate),
        at_once=int(config.train.micro_batch),
        steps=steps,
        flops=steps * estimate.flops,
    )


def _parts(estimate: Estimate) -> dict[str, int]:
    held = {
        "core": estimate.weights,
        "moments": estimate.optimizer,
        "average": estimate.average,
        "communication": estimate.communication,
    }
    rest = estimate.peak - sum(held.values())
    return {name: size for name, size in held.items() if size} | {"gradients and activations": rest}


def _evaluation(outlines: Outlines, stage: str, state: Estimate, evaluations: int) -> list[Phase]:
    """Held-out losses of a training state that stays on the device, by its average: its own weights are kept beside
    them; then images, by a core alone."""
    config = outlines.config
    core, mode = outlines.core()
    count = config.smoke.held_out
    at_once = min(CHUNK, count)
    beyond, flops = outlines.forward(core, mode, at_once, str(config.train.precision))
    held = {"core": state.weights, "moments": state.optimizer, "average": state.average}
    copy = {"own weights": state.weights} if state.average else {}
    sampled = 2 * config.smoke.samples
    drawn, each = outlines.forward(core, mode, sampled, "fp32")
    decoded = outlines.vae.cost(outlines.size, outlines.assumed.dtype("vae"), decode=True)
    return [
        Phase(
            stage=stage,
            name="evaluate on held-out images",
            device={k: v for k, v in (held | copy).items() if v} | {"activations": beyond},
            at_once=at_once,
            flops=evaluations * len(EVAL_SIGMAS) * flops * -(-count // at_once),
        ),
        Phase(
            stage=stage,
            name="draw images",
            device={"core": core_bytes(core), "activations": drawn},
            at_once=sampled,
            flops=SAMPLER_STEPS * each * (sampled + SPREAD_SAMPLES) // sampled,  # the latter without guidance
        ),
        Phase(
            stage=stage,
            name="decode images",
            device={"vae": decoded.weights, "activations": config.smoke.samples * decoded.each},
            at_once=config.smoke.samples,
            flops=config.smoke.samples * decoded.flops,
        ),
    ]


def _largest(estimates: dict[str, Estimate], otherwise: Estimate) -> Estimate:
    return max(estimates.values(), key=lambda e: e.peak, default=otherwise)
