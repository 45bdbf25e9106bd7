"""Every stage's phases: what is on the device at the same time, how many at once, steps, operations; and host and disk.

The rule of placement (docs/architecture.md): a part is on the device while it works. So a phase holds one VAE, or one text
encoder, or one training state, and a stage needs the most of its phases.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from diffusers import SanaTransformer2DModel

from sanakit.config import Config
from sanakit.data import load_images
from sanakit.data.cache import BATCH_SIZE, PROMPT_BATCH, RESIDENT_BYTES
from sanakit.errors import SanakitError
from sanakit.evaluation.held_out import CHUNK
from sanakit.flow import EVAL_SIGMAS
from sanakit.needs.fit import Assumed
from sanakit.needs.outline import BaseOutline, TextOutline, VAEOutline, outline_base, outline_encoder, outline_vae
from sanakit.strategies.base import STRATEGIES, Strategy, strategy_named
from sanakit.swap.fitting import fitting
from sanakit.swap.lineup import resting_controls
from sanakit.swap.race import raced_options
from sanakit.swap.rates import search_of
from sanakit.swap.rungs import decides_at, rungs
from sanakit.swap.settings import configured, options_of, strategy_of, with_adapter
from sanakit.training.checkpoint import KEEP
from sanakit.training.estimate import FP32, Estimate, as_fake, estimate, fake_core, forward_bytes
from sanakit.training.loop import TrainOptions

HEAD_DRAWS, ALIGN_CHUNK = 2048, 128  # alignment.vae.align_output
SAMPLER_STEPS = 24  # sampling.sample_euler
VIEWS = 2  # of a training image: as it is, and mirrored


@dataclass(frozen=True, kw_only=True)
class Phase:
    """device: bytes by part, all there at once. at_once: images or prompts that go through together. steps: of training, at most.
    flops: of the whole phase."""

    stage: str
    name: str
    device: dict[str, int]
    at_once: int = 0
    steps: int = 0
    flops: int = 0

    @property
    def peak(self) -> int:
        return sum(self.device.values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"peak": self.peak}


@dataclass(kw_only=True)
class Needs:
    """phases: of the stages in order. host, disk: bytes by what takes them. train: how a step is cut. step_flops: of the strategy
    that the given seconds a step belong to."""

    config: Config
    world_size: int
    num_images: int
    phases: list[Phase]
    host: dict[str, int]
    disk: dict[str, int]
    train: dict[str, Any]
    step_flops: int
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> int:
        return max(phase.peak for phase in self.phases)

    def seconds(self, phase: Phase, seconds_per_step: float) -> float:
        """At as many operations a second as the training step reaches."""
        return phase.flops / self.step_flops * seconds_per_step

    def as_dict(self, seconds_per_step: float | None = None) -> dict[str, Any]:
        def timed(phase: Phase) -> dict[str, Any]:
            hours = None if seconds_per_step is None else self.seconds(phase, seconds_per_step) / 3600
            return phase.as_dict() | {"hours": hours}

        stages: dict[str, Any] = {}
        for phase in self.phases:
            stages.setdefault(phase.stage, []).append(timed(phase))
        return {
            "world_size": self.world_size,
            "num_images": self.num_images,
            "stages": {
                name: {
                    "phases": rows,
                    "device": max(row["peak"] for row in rows),
                    "steps": sum(row["steps"] for row in rows),
                    "hours": None if seconds_per_step is None else sum(row["hours"] for row in rows),
                }
                for name, rows in stages.items()
            },
            "device": self.peak,
            "host": self.host | {"total": sum(self.host.values())},
            "disk": self.disk | {"total": sum(self.disk.values())},
            "train": self.train,
            "seconds_per_step": seconds_per_step,
            "notes": self.notes,
        }


@dataclass(kw_only=True)
class Outlines:
    """What a dry run knows of a swap: both sides' parts without weights, and the swapped core's geometry."""

    config: Config
    assumed: Assumed
    world_size: int
    base: BaseOutline
    vaes: dict[str, VAEOutline]  # base, and candidate where it is one
    encoders: dict[str, TextOutline]
    fresh: Any = None  # makes the swapped core: (SanaTransformer2DModel, FakeTensorMode)

    @property
    def vae(self) -> VAEOutline:
        return self.vaes.get("candidate", self.vaes["base"])

    @property
    def encoder(self) -> TextOutline:
        return self.encoders.get("candidate", self.encoders["base"])

    @property
    def size(self) -> int:
        return self.config.data.image_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.vae.spec.shape(self.size, self.size)

    def core(self, adapter: str | None = None) -> Any:
        """A fresh core of the swap, and its mode."""
        return fake_core(
            self.base.core,
            latents=self.vae.spec if "candidate" in self.vaes else None,
            text=self.encoder.spec if "candidate" in self.encoders else None,
            adapters=self.base.adapters,
            adapter=adapter or self.config.adapter.name,
            base_ratio=self.vaes["base"].spec.spatial_compression_ratio,
            image_size=self.size,
        )

    def step(self, strategy: type[Strategy], options: TrainOptions) -> Estimate:
        core, mode = self.core(strategy.adapter or None)
        return estimate(
            core,
            mode,
            strategy,
            options,
            latent_shape=self.latent_shape,
            caption_length=self.encoder.spec.max_tokens,
            world_size=self.world_size,
            fused_attention=self.assumed.fused_attention,
        )

    def forward(self, core: SanaTransformer2DModel, mode: Any, images: int, precision: str) -> tuple[int, int]:
        return forward_bytes(
            core,
            mode,
            images,
            self.latent_shape if core.config.in_channels == self.latent_shape[0] else self._base_shape,
            self.encoder.spec.max_tokens,
            precision=precision,
            fused_attention=self.assumed.fused_attention,
        )

    @property
    def _base_shape(self) -> tuple[int, int, int]:
        return self.vaes["base"].spec.shape(self.size, self.size)


def needs_of(
    config: Config,
    stages: Sequence[str],
    assumed: Assumed,
    *,
    world_size: int = 1,
    num_images: int | None = None,
) -> Needs:
    """What the stages need on a rank. num_images: of the data, counted where it is None. Raises SK0104 for what has no estimate (a
    text encoder or VAE that is trained), or what loading a configuration raises."""
    if config.train.target == "vae" or config.text_encoder.learning_rate:
        raise SanakitError(
            "SK0104",
            "the dry run tells what runs of the core need: train.target vae and text_encoder.learning_rate train another part",
            fix="Leave them out to see what the rest needs.",
        )
    outlines = _outlines(config, assumed, world_size)
    images = len(load_images(config.data.source, captions=config.data.captions)) if num_images is None else num_images
    choice = _cut(outlines, options_of(assumed.resolved(config), STRATEGIES.get("finetune")))
    config = assumed.resolved(config, *choice)
    outlines.config = config
    arms = _arms(outlines)
    estimates = {
        arm.name: outlines.step(arm, raced_options(options_of(config, arm), config.smoke.budget_steps, 1e-3))
        for arm in arms
    }
    final = strategy_of(config, {})
    whole = outlines.step(final, options_of(config, final))
    phases: list[Phase] = []
    if "component" in stages:
        phases += _component(outlines)
    if "smoke" in stages:
        phases += _encoding(outlines, images) + _alignment(outlines)
        phases += [_race(outlines, arm, estimates[arm.name]) for arm in arms]
        phases += _evaluation(outlines, "smoke", _largest(estimates, whole), len(rungs(config.smoke.budget_steps)))
    if "full" in stages:
        phases += [] if "smoke" in stages else _encoding(outlines, images, "full")
        phases += [_training(config, final, whole)]
        phases += _evaluation(outlines, "full", whole, config.monitors.num_evaluations)
    return Needs(
        config=config,
        world_size=world_size,
        num_images=images,
        phases=phases,
        host=_host(outlines, arms if "smoke" in stages else [], estimates, whole, images),
        disk=_disk(outlines, stages, _largest(estimates, whole), whole, images),
        train={
            "precision": config.train.precision,
            "gradient_checkpointing": config.train.gradient_checkpointing,
            "micro_batch": config.train.micro_batch,
            "batch_size": config.train.batch_size,
            "strategy": final.name,
        },
        step_flops=whole.flops,
        notes=[f"{outlines.base.name}: its published configuration, nothing was read"] if outlines.base.recorded else [],
    )


def _outlines(config: Config, assumed: Assumed, world_size: int) -> Outlines:
    base = outline_base(config.base)
    vaes, encoders = {"base": outline_vae(base.vae)}, {"base": outline_encoder(base.text_encoder)}
    if config.vae.name:
        vaes["candidate"] = outline_vae(config.vae.name)
    if config.text_encoder.name:
        encoders["candidate"] = outline_encoder(config.text_encoder.name)
    return Outlines(
        config=config, assumed=assumed, world_size=world_size, base=base, vaes=vaes, encoders=encoders
    )


def _cut(outlines: Outlines, options: TrainOptions) -> tuple[bool, int]:
    """Checkpointing and micro-batch as a run chooses them (swap/fitting.py), for a state that trains every layer."""
    train, world = outlines.config.train, outlines.world_size
    whole = max(1, train.batch_size // world // train.accumulate)
    if outlines.assumed.memory is None:
        stated = whole if train.micro_batch == "auto" else int(train.micro_batch)
        return train.gradient_checkpointing is True, stated
    known: dict[tuple[bool, int], int] = {}

    def peak(checkpointing: bool, micro: int) -> int:
        if (checkpointing, micro) not in known:
            parts = max(1, train.batch_size // world // micro)
            cut = replace(
                options,
                gradient_checkpointing=checkpointing,
                batch_size=micro * world * min(2, parts),
                accumulate=min(2, parts),
                ema_decay=0.98,
            )
            known[checkpointing, micro] = outlines.step(STRATEGIES.get("finetune"), cut).peak
        return known[checkpointing, micro]

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
    found = [strategy_named(name) for name in known if name not in resting]
    return [configured(config, strategy) for strategy in found if strategy.scales]


def _component(outlines: Outlines) -> list[Phase]:
    config = outlines.config
    if config.kind == "vae":
        return [
            phase
            for side, vae in reversed(outlines.vaes.items())
            for phase in _vae_phases(outlines, vae, side, "component", config.component.num_images, most=16)
        ]
    count = config.component.num_images
    return [_captions(outlines, e, side, "component", count) for side, e in reversed(outlines.encoders.items())]


def _vae_phases(
    outlines: Outlines, vae: VAEOutline, side: str, stage: str, count: int, *, most: int, decode: bool = True
) -> list[Phase]:
    dtype = outlines.assumed.dtype("vae")
    phases = []
    for verb, decodes in (("encode", False), ("decode", True)) if decode else (("encode", False),):
        cost = vae.cost(outlines.size, dtype, decode=decodes)
        at_once = outlines.assumed.at_once(cost, most)
        phases.append(
            Phase(
                stage=stage,
                name=f"{verb} with the {side}'s VAE",
                device={"vae": cost.weights, "activations": at_once * cost.each},
                at_once=at_once,
                flops=count * cost.flops,
            )
        )
    return phases


def _captions(outlines: Outlines, encoder: TextOutline, side: str, stage: str, count: int) -> Phase:
    cost = encoder.cost(outlines.assumed.dtype("text_encoder"))
    at_once = outlines.assumed.at_once(cost, PROMPT_BATCH)
    return Phase(
        stage=stage,
        name=f"embed captions with the {side}'s text encoder",
        device={"text encoder": cost.weights, "activations": at_once * cost.each},
        at_once=at_once,
        flops=count * cost.flops,
    )


def _encoding(outlines: Outlines, images: int, stage: str = "smoke") -> list[Phase]:
    phases = [
        phase
        for side, vae in outlines.vaes.items()
        for phase in _vae_phases(outlines, vae, side, stage, VIEWS * images, most=BATCH_SIZE, decode=False)
    ]
    return phases + [_captions(outlines, e, side, stage, images) for side, e in outlines.encoders.items()]


def _alignment(outlines: Outlines) -> list[Phase]:
    """Both cores, the base's in its own precision."""
    dtype = outlines.assumed.dtype("base")
    base, base_mode = fake_core(outlines.base.core, adapters=outlines.base.adapters)
    as_fake(base, base_mode, dtype)
    core, mode = outlines.core()
    own, flops = outlines.forward(core, mode, ALIGN_CHUNK, "fp32")
    weights = {"base": _bytes(base), "core": _bytes(core)}
    return [
        Phase(
            stage="smoke",
            name="align in closed form",
            device=weights | {"activations": own},
            at_once=ALIGN_CHUNK,
            flops=HEAD_DRAWS // ALIGN_CHUNK * flops,
        )
    ]


def _race(outlines: Outlines, arm: type[Strategy], found: Estimate) -> Phase:
    config, budget = outlines.config, outlines.config.smoke.budget_steps
    rates = search_of(config, arm, embedded=outlines.base.embedded).rates
    steps = (len(rates) - 1) * decides_at(budget) + budget
    return Phase(
        stage="smoke",
        name=f"train {arm.name}",
        device=_parts(found),
        at_once=int(config.train.micro_batch),
        steps=steps,
        flops=steps * found.flops,
    )


def _training(config: Config, strategy: type[Strategy], found: Estimate) -> Phase:
    return Phase(
        stage="full",
        name=f"train {strategy.name}",
        device=_parts(found),
        at_once=int(config.train.micro_batch),
        steps=config.train.max_steps,
        flops=config.train.max_steps * found.flops,
    )


def _parts(found: Estimate) -> dict[str, int]:
    held = {
        "core": found.weights,
        "moments": found.optimizer,
        "average": found.average,
        "communication": found.communication,
    }
    rest = found.peak - sum(held.values())
    return {name: size for name, size in held.items() if size} | {"gradients and activations": rest}


def _evaluation(outlines: Outlines, stage: str, state: Estimate, evaluations: int) -> list[Phase]:
    """Held-out losses of a training state that stays on the device, by its average: its own weights are kept beside them; then
    images, by a core alone."""
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
            device={"core": _bytes(core), "activations": drawn},
            at_once=sampled,
            flops=SAMPLER_STEPS * each,
        ),
        Phase(
            stage=stage,
            name="decode images",
            device={"vae": decoded.weights, "activations": config.smoke.samples * decoded.each},
            at_once=config.smoke.samples,
            flops=config.smoke.samples * decoded.flops,
        ),
    ]


def _host(
    outlines: Outlines, arms: list[type[Strategy]], estimates: dict[str, Estimate], whole: Estimate, images: int
) -> dict[str, int]:
    """One copy of each part, what waits of a race, and what is resident of the cache."""
    base, _ = fake_core(outlines.base.core, adapters=outlines.base.adapters)
    rows = _cached(outlines, images)
    waiting = [e.weights + e.optimizer + e.average for e in (estimates[arm.name] for arm in arms)]
    return {
        "base core": _bytes(base),
        "vaes": sum(vae.stored for vae in outlines.vaes.values()),
        "text encoders": sum(encoder.stored for encoder in outlines.encoders.values()),
        "arms": sum(waiting) or whole.weights,
        "latents and embeddings": sum(min(RESIDENT_BYTES, size) for size in rows.values()),
    }


def _cached(outlines: Outlines, images: int) -> dict[str, int]:
    """Bytes of the cache by entry: latents with their deviation, embeddings with their mask (data/cache.py)."""
    size = outlines.size
    latents = {
        f"latents of the {side}": 6 * VIEWS * images * torch.Size(vae.spec.shape(size, size)).numel()
        for side, vae in outlines.vaes.items()
    }
    texts = {
        f"embeddings of the {side}": images * e.spec.max_tokens * (2 * e.spec.embed_dim + 1)
        for side, e in outlines.encoders.items()
    }
    return latents | texts


def _disk(
    outlines: Outlines, stages: Sequence[str], arm: Estimate, whole: Estimate, images: int
) -> dict[str, int]:
    found = _cached(outlines, images) if {"smoke", "full"} & set(stages) else {}
    if "smoke" in stages:
        found["arms of the race"] = 2 * arm.checkpoint  # of those that go on; others leave a curve
    if "full" in stages:
        always = outlines.config.train.schedule == "constant-then-decay"
        found["checkpoints"] = (KEEP + 1 + always) * whole.checkpoint
        found["model"] = FP32 * whole.parameters
    return found


def _largest(estimates: dict[str, Estimate], otherwise: Estimate) -> Estimate:
    return max(estimates.values(), key=lambda e: e.peak, default=otherwise)


def _bytes(core: SanaTransformer2DModel) -> int:
    return sum(p.numel() * p.element_size() for p in core.parameters())
