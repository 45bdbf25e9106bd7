"""The contract of a metric: one finite score of what a system drew, the same twice, images unchanged."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sanakit.evaluation.drawing import Asked, Drawn
from sanakit.evaluation.metrics.base import METRICS, SIDES, Measured, checked
from sanakit.testing.contract import require, resolve

COLOURS = ("red", "green", "blue", "grey")


def check_metric(metric: str | Callable[[Drawn], Any], *, num_prompts: int = 8, num_seeds: int = 2) -> None:
    """A registered name or a metric keeps its contract on plain images with noise, by the features that need no
    network. Raises SK0115, or what the metric raises."""
    item, name = resolve(metric, METRICS)
    require(callable(item), name, f"a {type(item).__name__}, expected a function of Drawn", "Decorate a function.")
    better = getattr(item, "better", "")
    require(better in SIDES, name, f"better is {better!r}, expected higher, lower or nothing", "@metric(better=...)")
    drawn = drawn_example(num_prompts, num_seeds)
    before = drawn.images.clone()
    first, second = (_measured(item, name, one) for one in (drawn, drawn_example(num_prompts, num_seeds)))
    fix = "Copy what the function changes."
    require(torch.equal(drawn.images, before), name, "the images were changed by the metric", fix)
    equal = np.full((1, num_prompts), 1 / num_prompts)
    uneven = np.arange(1, num_prompts + 1, dtype=np.float64)[None] / (num_prompts * (num_prompts + 1) / 2)
    for label, weights in (("equal", equal), ("uneven", uneven)):
        scores = np.asarray(first.score(weights), np.float64)
        found = f"the score for {label} weights is {scores.tolist()}, expected one finite number"
        require(scores.shape == (1,) and bool(np.isfinite(scores).all()), name, found, "Give a number a sample.")
        again = np.asarray(second.score(weights), np.float64)
        found = f"two evaluations of the same images differ: {scores[0]:.6g} and {again[0]:.6g}"
        fix = "Draw with a fixed seed: numpy.random.default_rng(0)."
        require(bool(np.allclose(scores, again, rtol=1e-6, atol=1e-9)), name, found, fix)


def drawn_example(num_prompts: int = 8, num_seeds: int = 2, *, size: int = 32) -> Drawn:
    """What a metric reads: plain colours with noise, of another brightness each; the true images without the noise."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.linspace(40, 210, num_prompts)[:, None] * torch.tensor([1.0, 0.8, 0.6])
    truth = levels[:, :, None, None].expand(num_prompts, 3, size, size)
    noise = 20 * torch.randn((num_seeds, num_prompts, 3, size, size), generator=generator)
    prompts = [f"{COLOURS[number % len(COLOURS)]} square {number}" for number in range(num_prompts)]
    images = (truth[None] + noise).clamp(0, 255).byte()
    reference = (truth.flip(0) + noise[0]).clamp(0, 255).byte()
    return Drawn(asked=Asked(prompts=prompts, truth=truth.byte(), reference=reference), images=images)


def _measured(metric: Callable[[Drawn], Any], name: str, drawn: Drawn) -> Measured:
    try:
        return checked(metric(drawn), drawn)
    except (TypeError, ValueError) as error:
        require(False, name, str(error), "Give Measured(values=...), (seeds, prompts), or Measured(statistic=...).")
        raise
