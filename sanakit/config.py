"""One frozen configuration for every command; unknown keys are refused with a suggestion.

A run is a Python function that returns a `Config` (see presets.py); `--set key=value` changes single keys.
"""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, NonNegativeFloat, ValidationError, model_validator

from sanakit.config_fields import Name, Section, merged_values, read_yaml, whole
from sanakit.errors import SanakitError, did_you_mean
from sanakit.limits import LARGEST_ASPECT, LARGEST_BATCH, LARGEST_COUNT, LARGEST_SECONDS, LARGEST_SEED, LARGEST_SIDE

Action = Literal["off", "log", "warn", "lower-rate", "roll-back", "stop"]
Moving = Literal["adapters", "activations", "generated", "components"]  # drift by design, inside a band
Dtype = Literal["auto", "fp32", "bf16", "fp16"]  # of a frozen part; auto: as the device allows (sanakit/placement.py)
Group = Literal["input", "output", "caption", "cross_attention", "core", "lora"]


TEXT = "trains no text encoder"
ALONE = {"text_encoder.name": TEXT, "text_encoder.learning_rate": TEXT, "train.gradual": "trains no block of the core"}
ALONE |= {"data.aspect_buckets": "reads squares", "data.sample_posterior": "reads images, no latents"}


RACED: tuple[str, ...] = ("reuse", "align", "align-blocks", "align+head", "lora", "cross-attention", "distill")
RACED += ("finetune", "naive", "scratch")


class TrainSection(Section):
    # None: stage full takes the 80th percentile of the race's forecast (sanakit/swap/full_steps.py)
    max_steps: int | None = whole(None)
    batch_size: int = whole(32, most=LARGEST_BATCH)  # over all ranks and micro-batches
    learning_rate: float | None = Field(default=None, gt=0)  # None: the strategy's own
    checkpoint_every: int = whole(100)
    seed: int = whole(0, 0, LARGEST_SEED)
    strategy: Name = "auto"
    # where align+head, lora and finetune begin; auto: the closed form with the lower held-out error before any step
    start: Literal["align", "align-blocks", "auto"] = "auto"
    start_draws: int = whole(512, 16, LARGEST_BATCH)  # images with noise that align-blocks is solved from
    rates: dict[Group, NonNegativeFloat] = {}  # learning-rate multipliers over the strategy's own; 0 freezes a group
    layer_decay: float = Field(default=1.0, gt=0, le=1)  # block i of L runs at layer_decay ** (L - 1 - i)
    lora_rank: int = whole(16, most=LARGEST_SIDE)
    gradual: float = Field(default=0.0, ge=0, le=0.9)  # share of the steps over which blocks join; 0: all at once
    warmup: int = whole(20, 0)
    # constant-then-decay: constant after the warm-up, then linear to zero over the last third
    schedule: Literal["constant-then-decay", "cosine", "constant"] = "constant-then-decay"
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    prompt_dropout: float = Field(default=0.1, ge=0, le=1)
    sigmas: Literal["logit-normal", "uniform"] = "logit-normal"
    ema_decay: float = Field(default=0.0, ge=0, lt=1)  # 0 keeps no average; otherwise the average is what is exported
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 on an accelerator that has it, else fp32
    parallel: Literal["ddp", "fsdp"] = "ddp"
    accumulate: int = whole(1, most=LARGEST_BATCH)
    # images of a rank that go through the core at once; auto: the batch in train.accumulate parts, on an accelerator
    # smaller ones where its free memory asks for it. What a step sees stays train.batch_size.
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1, le=LARGEST_BATCH)] = "auto"
    gradient_checkpointing: Literal["auto"] | bool = "auto"  # auto: on an accelerator whose memory needs it
    max_skipped: int = whole(0, 0)  # steps with a loss that is not finite that may be left out
    target: Literal["core", "vae", "vae-decoder"] = "core"  # vae: the VAE itself; vae-decoder: its decoder alone
    optimizer: Literal["adamw", "adamw-8bit", "came"] = "adamw"
    compile: bool = False  # the core, by torch.compile
    kernels: Literal["off", "triton"] = "off"  # triton: linear attention and mix-FFN by sanakit's kernels, on a GPU
    async_checkpoints: bool = True  # written by another thread, from copies
    # seconds in one step before the rank behind is named; 0: never
    hang_timeout: float = Field(default=1800.0, ge=0, le=LARGEST_SECONDS)
    log_every: int = whole(10)  # steps between rows of steps.jsonl and of the trackers
    sample_every: int = whole(0, 0)  # steps between sample grids; 0: at the end only
    report_to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ()

    @property
    def steps(self) -> int:
        """max_steps where it is decided, as it is from the beginning of a training run on."""
        if self.max_steps is None:
            raise ValueError("train.max_steps is not decided")
        return self.max_steps


class DataSection(Section):
    source: Name = "embedded"
    # pixels of a side; None: what the base was trained at
    image_size: int | None = whole(None, 16, LARGEST_SIDE)
    # how squares are made of other images; None: as the data set states (the embedded ones pad), files are cropped
    fit: Literal["crop", "pad"] | None = None
    captions: Literal["lines", "whole"] = "lines"  # of caption files: a caption a line, or the file is one caption
    max_set_aside: float = Field(default=0.05, ge=0, le=1)
    cache: Name | None = None  # a folder that `sanakit encode` filled; what it lacks is refused, not encoded
    # when images are encoded: ahead, once, into the cache; live, whenever a batch asks for them; auto: ahead where the
    # free disk holds it. What auto chose stands in config.yaml
    latents: Literal["live", "ahead", "auto"] = "auto"
    embeddings: Literal["live", "ahead", "auto"] = "auto"  # of captions, in the same way
    workers: int = whole(1, 0, 1024)  # threads that draw batches ahead; 0 draws in the loop
    caption_temperature: float | None = Field(default=None, gt=0)  # of the captions' scores; None: all alike
    aspect_buckets: bool = False  # train on images of about image_size squared in their own shape
    max_aspect: float = Field(default=2.0, ge=1, le=LARGEST_ASPECT)
    sample_posterior: bool = False  # train on draws from the VAE's posterior, not on its mean

    @property
    def size(self) -> int:
        """image_size where it is decided, as it is from the beginning of a run on."""
        if self.image_size is None:
            raise ValueError("data.image_size is not decided")
        return self.image_size


class VAESection(Section):
    name: Name | None = None  # None: the base's
    scaling_factor: float | None = Field(default=None, gt=0)  # an override, recorded as such
    dtype: Dtype = "auto"  # that it computes in where it is frozen
    equivariance: float = Field(default=0.5, ge=0)  # weight of the decoded turned and scaled latents; train.target vae
    perceptual: float = Field(default=0.2, ge=0)  # weights of the terms of vae-decoder beside pixels
    high_frequency: float = Field(default=1.0, ge=0)
    perceptual_features: Literal["efficientnet-lite0", "lpips-alex"] = "efficientnet-lite0"


class TextEncoderSection(Section):
    name: Name | None = None
    learning_rate: float | None = Field(default=None, gt=0)  # trained with the core at this peak; None: frozen
    gradient_checkpointing: bool = False  # of its layers
    dtype: Dtype = "auto"  # that it computes in where it is frozen


class AdapterSection(Section):
    name: Name | None = None  # of `sanakit ls adapters`; None: the linear adapter, which stays a plain core


class ComponentSection(Section):
    # held-out images or captions that evaluate a component or tuned VAE
    num_images: int = whole(192, 16)


class SmokeSection(Section):
    # steps of every strategy; auto: 50, doubled while the race cannot tell, at most max_budget_steps
    budget_steps: Annotated[int, Field(ge=8, le=LARGEST_COUNT)] | Literal["auto"] = "auto"
    max_budget_steps: int = whole(400, 8)
    horizon: int | None = whole(None)  # steps within which a strategy must arrive; None: docs/forecast.md
    # minutes of the command after which the race begins no further rung
    time_limit: float | None = Field(default=None, gt=0, le=LARGEST_SECONDS)
    # the ones among these that serve the swap
    strategies: tuple[Name, ...] = RACED
    # naive and scratch race too; otherwise they are evaluated before any step, for the gates that read their start
    controls: bool = False
    # learning rates tried for half the budget, times the strategy's own; None: as the base's size asks for
    # (docs/strategies.md); train.learning_rate overrides
    rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] | None = None
    held_out: int = whole(128, 16)  # held-out images used to evaluate smoke and full; at most all
    samples: int = whole(8, 8, LARGEST_BATCH)  # images drawn by base and candidate used to evaluate smoke and full


class EvaluateSection(Section):
    """How stage full compares what base and candidate draw (docs/evaluation.md)."""

    num_prompts: int = whole(24, 0)  # held-out prompts; 0: nothing is drawn and compared
    num_seeds: int = whole(2, most=LARGEST_BATCH)  # samples of a prompt
    metrics: tuple[Name, ...] = ("kid", "frechet", "caption-recovery", "diversity")  # of `sanakit ls metrics`
    features: Name = "auto"  # comma-separated names; auto: those that need no network
    clip: Name = "hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"  # the model of clip-score and clip-recovery


class MonitorsSection(Section):
    """What an alarm of each monitor does; `off` does not watch."""

    num_evaluations: int = whole(8, most=LARGEST_BATCH)  # evaluation steps of a run
    alpha: float = Field(default=0.05, gt=0, lt=1)  # false-alarm bound of the whole run, over the still streams
    band: float = Field(default=0.5, gt=0)  # sd that moving streams may move
    bands: dict[Moving, Annotated[float, Field(gt=0)]] = {}  # of single monitors, instead
    latents: Action = "warn"
    embeddings: Action = "warn"
    adapters: Action = "log"
    activations: Action = "log"
    generated: Action = "log"
    components: Action = "log"  # the text encoder or VAE that is trained

    def band_of(self, name: Moving) -> float:
        return self.bands.get(name, self.band)


class Config(Section):
    base: Name = "tiny-sana"
    base_dtype: Dtype = "auto"  # that its core computes in where it is frozen; --set base.dtype=... sets it too
    train: TrainSection = TrainSection()
    data: DataSection = DataSection()
    vae: VAESection = VAESection()
    text_encoder: TextEncoderSection = TextEncoderSection()
    adapter: AdapterSection = AdapterSection()
    component: ComponentSection = ComponentSection()
    smoke: SmokeSection = SmokeSection()
    evaluate: EvaluateSection = EvaluateSection()
    monitors: MonitorsSection = MonitorsSection()

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> "Config":
        if self.vae.name and self.text_encoder.name:
            raise ValueError(
                f"a swap replaces one component, found vae.name {self.vae.name} and text_encoder.name "
                f"{self.text_encoder.name}: swap one, then the other with the result as the base"
            )
        if self.text_encoder.name and self.vae.scaling_factor:
            raise ValueError(
                f"vae.scaling_factor {self.vae.scaling_factor:g} is of a candidate VAE, found text_encoder.name "
                f"{self.text_encoder.name}: state the base's own factor in its card"
            )
        if self.text_encoder.gradient_checkpointing and self.text_encoder.learning_rate is None:
            raise ValueError("text_encoder.gradient_checkpointing needs text_encoder.learning_rate: it is frozen")
        for key, why in ALONE.items():
            if self.trains_vae_alone and getattr(getattr(self, key.split(".")[0]), key.split(".")[1]):
                raise ValueError(f"train.target {self.train.target} {why}: leave {key} out")
        return self

    @property
    def trains_vae_alone(self) -> bool:
        return self.train.target != "core"

    @property
    def kind(self) -> str:
        return "text_encoder" if self.text_encoder.name else "vae"

    @property
    def candidate(self) -> str | None:
        return self.text_encoder.name or self.vae.name


def make_config(values: dict[str, Any], overrides: list[str] | None = None) -> Config:
    """Nested values and `key=value` overrides to a Config. Raises SK0104 naming the key,
    what was found and expected."""
    merged = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for item in overrides or []:
        key, equals, text = item.partition("=")
        key = ALIASES.get(key, key)
        parts = key.split(".")
        if not equals or not all(parts) or len(parts) > 2:
            raise SanakitError("SK0104", f"--set {item!r} is not key=value with a key such as train.max_steps")
        if not text.strip():
            raise SanakitError("SK0104", f"--set {key} has no value", fix=f"Write {key}=null where none is meant.")
        try:
            value = read_yaml(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise SanakitError("SK0104", f"--set {key!r:.60}: {text!r:.60} is no YAML value: {error}") from error
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            with suppress(ValueError):
                value = float(value)
                value = int(value) if value.is_integer() else value
        target = merged
        for part in parts[:-1]:
            inner = target.setdefault(part, {})
            if not isinstance(inner, dict):
                raise SanakitError("SK0104", f"{part} is {inner!r}, not a section")
            target = inner
        target[parts[-1]] = value
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        key, told = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        if not key:
            raise SanakitError("SK0104", told) from error
        hint = ""
        if first["type"] == "extra_forbidden":
            renamed = RENAMED_KEYS.get(key)
            hint = f": it is called {renamed} now" if renamed else did_you_mean(key, known_keys())
        given = f", found {first['input']!r:.60}" if first["type"] != "extra_forbidden" else ""
        raise SanakitError("SK0104", f"{key}: {told}{given}{hint}") from error


ALIASES = {"base.dtype": "base_dtype"}
RENAMED_KEYS = {"component.pictures": "component.num_images", "monitors.looks": "monitors.num_evaluations"}


def known_keys() -> list[str]:
    return [
        f"{name}.{key}" if isinstance(value, dict) else name
        for name, value in Config().model_dump().items()
        for key in (value if isinstance(value, dict) else [name])
    ]


def load_config(path: Path, overrides: list[str] | None = None, given: dict[str, Any] | None = None) -> Config:
    """A YAML file. given: values of options, which replace the file's; overrides replace both. Raises SK0104 when it
    cannot be read."""
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SanakitError("SK0104", f"{path}: {error}") from error
    if not isinstance(values := {} if values is None else values, dict):
        raise SanakitError(
            "SK0104", f"{path} holds {type(values).__name__}, expected sections such as train: and data:"
        )
    return make_config(merged_values(values, given or {}), overrides)


def dump_config(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
