"""From a configuration to what the loop takes: the strategy, its options, and its keys written flat."""

from typing import Any

from sanakit.config import Config
from sanakit.swap.base import STRATEGIES, Strategy
from sanakit.train import TrainOptions


def strategy_of(config: Config, raced: dict[str, Any]) -> type[Strategy]:
    """The configured strategy, the race's recommendation, or finetune, at the learning rate that its race found best;
    `train.rates` and `train.lora_rank` applied. raced: strategy.json, empty where no race was run."""
    name = config.train.strategy if config.train.strategy != "auto" else raced.get("recommended") or "finetune"
    strategy = STRATEGIES.get(name)
    rate = next((c["learning_rate"] for c in raced.get("candidates", []) if c["name"] == name), strategy.learning_rate)
    rank = config.train.lora_rank if strategy.lora_rank else 0
    own = {"scales": strategy.scales | config.train.rates, "lora_rank": rank, "learning_rate": rate}
    return type(strategy.__name__, (strategy,), own)


def options_of(config: Config, strategy: type[Strategy]) -> TrainOptions:
    own = config.train
    return TrainOptions(
        max_steps=own.max_steps,
        batch_size=own.batch_size,
        seed=own.seed,
        learning_rate=own.learning_rate or strategy.learning_rate,
        weight_decay=own.weight_decay,
        warmup=own.warmup,
        decay=own.schedule == "cosine",
        max_grad_norm=own.max_grad_norm,
        prompt_dropout=own.prompt_dropout,
        sigmas=own.sigmas,
        ema_decay=own.ema_decay,
        accumulate=own.accumulate,
        precision=own.precision,
        parallel=own.parallel,
        gradient_checkpointing=own.gradient_checkpointing,
        max_skipped=own.max_skipped,
        optimizer=own.optimizer,
        compile=own.compile,
        workers=config.data.workers,
    )


def flat_config(config: Config) -> dict[str, Any]:
    return {
        f"{section}.{key}".rstrip("."): value
        for section, values in config.model_dump(mode="json").items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
