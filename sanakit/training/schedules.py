"""The learning rate by step: three schedules, all behind a linear warm-up."""

import math
from collections.abc import Callable

from sanakit.training.batches import TrainOptions


def learning_rate_at(step: int, options: TrainOptions) -> float:
    """Learning rate of a step, 0 <= step < options.max_steps, as `options.schedule` says."""
    warm = min(1.0, (step + 1) / max(1, options.warmup))
    return options.learning_rate * warm * SCHEDULES[options.schedule](step, options.max_steps)


def decay_start(schedule: str, max_steps: int) -> int | None:
    """The step at which the rate begins to fall: everything before it is independent of max_steps. None for a schedule
    without such a step."""
    return max_steps - max_steps // 3 if schedule == "constant-then-decay" else None


def saves_at(step: int, options: TrainOptions, checkpoint_every: int) -> bool:
    """Whether a run writes a checkpoint after so many steps: at regular distances, where the rate begins to fall,
    at the end."""
    ends = decay_start(options.schedule, options.max_steps), options.max_steps
    return step % checkpoint_every == 0 or step in ends


def _constant(step: int, max_steps: int) -> float:
    return 1.0


def _cosine(step: int, max_steps: int) -> float:
    """From 1 to 0 at max_steps."""
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / max_steps))


def _constant_then_decay(step: int, max_steps: int) -> float:
    """1, then linear to 0 over the last third."""
    start = decay_start("constant-then-decay", max_steps)
    assert start is not None
    return 1.0 if step <= start else max(0.0, (max_steps - step) / (max_steps - start))


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant-then-decay": _constant_then_decay,
    "cosine": _cosine,
    "constant": _constant,
}
