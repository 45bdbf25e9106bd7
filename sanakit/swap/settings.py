"""From a configuration to what the loop takes: the strategy, its options, and its keys written flat."""

from dataclasses import fields
from typing import Any

from sanakit.adapters import has_modules
from sanakit.config import Config, TrainSection
from sanakit.distributed import world_size
from sanakit.run import flat, stored
from sanakit.strategies.base import Strategy, strategy_named
from sanakit.swap.rungs import Rungs, auto_rungs, fixed_rungs
from sanakit.training.loop import TrainOptions

UNDECIDED = 1  # steps of options that are not trained by: a race has steps of its own, stage full decides first
EMBEDDED_HORIZON = 2000  # steps that the decision study's runs went
HORIZON = 50_000  # of any other core: DC-Gen trained its interface layers alone for 5,000 to 20,000


def with_adapter(config: Config, name: str) -> str:
    """The name of a strategy that is joined by `adapter.name`: STRATEGY@ADAPTER,
    its own where that leaves a plain core."""
    adapter = config.adapter.name
    return f"{name}@{adapter}" if adapter and has_modules(adapter) else name


def strategy_of(config: Config, raced: dict[str, Any]) -> type[Strategy]:
    """The configured strategy, the race's recommendation, or finetune, at the learning rate that its race found best;
    `adapter.name`, `train.rates` and `train.lora_rank` applied. raced: strategy.json, empty where no race was run."""
    named = with_adapter(config, "finetune" if config.train.strategy == "auto" else config.train.strategy)
    recommended = raced.get("recommended") if config.train.strategy == "auto" else None
    name = recommended or named
    strategy = strategy_named(name)
    rates = [c["learning_rate"] for c in raced.get("candidates", []) if c["name"] == name]
    rate = next((rate for rate in rates if rate), strategy.unraced_rate(config.kind))
    return configured(config, strategy, learning_rate=rate)


def configured(config: Config, strategy: type[Strategy], **changes: Any) -> type[Strategy]:
    """The strategy with `train.rates` and `train.lora_rank` applied, and further attributes changed."""
    rank = config.train.lora_rank if strategy.lora_rank else 0
    overrides = {"scales": strategy.scales | config.train.rates, "lora_rank": rank}
    return type(strategy.__name__, (strategy,), overrides | changes)


def rungs_in(config: Config) -> Rungs:
    """Where the race of this configuration may end."""
    steps = config.smoke.budget_steps
    return auto_rungs(config.smoke.max_budget_steps) if steps == "auto" else fixed_rungs(steps)


def horizon_of(config: Config, *, embedded: bool) -> int:
    """Steps within which a strategy must arrive: `smoke.horizon`, or by default what the base's size asks for.
    embedded: as the base's record says (`Base.embedded`)."""
    return config.smoke.horizon or (EMBEDDED_HORIZON if embedded else HORIZON)


def options_of(config: Config, strategy: type[Strategy], ranks: int | None = None) -> TrainOptions:
    """The training section as the loop takes it; a key of the same name in both is handed on, so that a race and stage
    full read every key alike. ranks: that share a step, by default those of this run."""
    section = config.train
    same = {f.name: getattr(section, f.name) for f in fields(TrainOptions) if f.name in TrainSection.model_fields}
    different = {
        # a configuration that was not resolved (swap/fitting.py) is the CPU's
        "precision": "fp32" if section.precision == "auto" else section.precision,
        "gradient_checkpointing": section.gradient_checkpointing is True,
        "accumulate": parts_of(section, section.batch_size // (ranks or world_size())),
        "max_steps": section.max_steps or UNDECIDED,
        "learning_rate": section.learning_rate or strategy.learning_rate,
        "workers": config.data.workers,
    }
    return TrainOptions(**same | different)


def parts_of(train: TrainSection, images: int) -> int:
    """Into how many micro-batches a rank's `images` of a step are cut: `train.accumulate`, or the fewest equal ones
    beyond that of at most `train.micro_batch`."""
    parts, most = train.accumulate, images if train.micro_batch == "auto" else train.micro_batch
    while parts < images and (images % parts or images // parts > most):
        parts += 1
    return train.accumulate if images % train.accumulate else parts


def flat_config(config: Config) -> dict[str, Any]:
    """Every key as section.key, as it may be written down and sent to a tracker."""
    return flat(stored(config))
