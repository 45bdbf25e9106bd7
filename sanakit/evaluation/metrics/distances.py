"""KID (arXiv 1801.01401) and the Frechet distance (arXiv 1706.08500) of samples to true images, in named features.

torchmetrics has both with a network of one's own, and its kernel is used here. Its classes do not serve: KID draws its
subsets by the global random state and has no weights, so that two systems cannot be compared on the same resample, and
the Frechet distance decomposes a D x D matrix, which a bootstrap cannot repeat. The same values come from N x M
products of features; a test compares them with torchmetrics.

Each seed is a set of its own with one sample a prompt, and the score is the mean over seeds: then the images that the
prompts describe, which are as many, score under the same bias of a small set.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchmetrics.image.kid import poly_kernel

from sanakit.evaluation.drawing import Drawn
from sanakit.evaluation.metrics.base import METRICS, Measured, metric

BIAS = "biased at this number of images: compare it with what the true images score, not with published values"
Distance = Callable[[np.ndarray], float]


@METRICS.register("kid", title="KID, kernel distance to true images", embedded=True)
@metric(better="lower", every_features=True)
def kid(drawn: Drawn) -> Measured:
    """Unbiased squared MMD under the cubic kernel; around 0 where nothing tells the two sets apart."""
    return measured_by(kernel_distance, drawn, note="")


@METRICS.register("frechet", title="Frechet distance to true images", embedded=True)
@metric(better="lower", every_features=True)
def frechet(drawn: Drawn) -> Measured:
    """Between Gaussians of the features."""
    return measured_by(frechet_distance, drawn, note=BIAS)


def measured_by(distance: Callable[[Tensor, Tensor], Distance], drawn: Drawn, note: str) -> Measured:
    """A distance of every seed's samples to the reference images, and that of the prompts' own images."""
    reference = drawn.of_reference()
    of_seeds = [distance(samples, reference) for samples in drawn.of_samples()]
    equal = np.full(drawn.num_prompts, 1 / drawn.num_prompts)

    def statistic(weights: np.ndarray) -> float:
        return float(np.mean([one(weights) for one in of_seeds]))

    return Measured(
        statistic=statistic,
        features=drawn.label,
        of_true_images=distance(drawn.of_truth(), reference)(equal),
        references=len(reference),
        note=note,
    )


def kernel_distance(samples: Tensor, reference: Tensor) -> Distance:
    """samples (N, D), reference (M, D) -> the distance for weights (N,). A pair of a resampled image with itself never
    counts, which would raise it."""
    first, second = samples.double(), reference.double()
    within = poly_kernel(first, first).fill_diagonal_(0).numpy()
    across = poly_kernel(first, second).mean(1).numpy()
    others = poly_kernel(second, second).fill_diagonal_(0)
    among = float(others.sum() / (len(second) * (len(second) - 1)))

    def distance(weights: np.ndarray) -> float:
        pairs = weights.sum() ** 2 - (weights**2).sum()
        return float(weights @ within @ weights / pairs + among - 2 * (weights @ across) / weights.sum())

    return distance


def frechet_distance(samples: Tensor, reference: Tensor) -> Distance:
    """samples (N, D), reference (M, D) -> |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) for weights (N,). The trace of
    the square root is the sum of the singular values of the centred N x M product."""
    first, second = samples.double().numpy(), reference.double().numpy()
    count, others = len(first), len(second)
    centre = second.mean(0)
    away = first - centre  # the reference's mean is the origin
    centred = second - centre
    lengths, product, gram = (away**2).sum(1), away @ centred.T, away @ away.T
    spread = (centred**2).sum() / (others - 1)

    def distance(weights: np.ndarray) -> float:
        mean_square = float(weights @ gram @ weights)
        factor = count / (count - 1)
        variance = factor * (float(weights @ lengths) - mean_square)
        rows = np.sqrt(weights * factor / (others - 1))[:, None] * (product - weights @ product)
        return mean_square + variance + float(spread) - 2 * float(np.linalg.norm(rows, "nuc"))

    return distance


def unit_rows(features: Tensor, centre: Tensor) -> Tensor:
    """Features from a centre, of length 1: (..., D)."""
    return torch.nn.functional.normalize(features - centre, dim=-1)
