"""How varied samples are: between prompts, and between seeds of one prompt."""

import numpy as np
import torch

from sanakit.evaluation.drawing import Drawn
from sanakit.evaluation.metrics.base import METRICS, Measured, metric
from sanakit.evaluation.metrics.distances import unit_rows

MOST = 1.0  # noise is more varied than images and no better


@METRICS.register("diversity", title="variety of samples, as a share of the true images'", embedded=True)
@metric(better="higher")
def diversity(drawn: Drawn) -> Measured:
    """Mean distance (1 - cosine) between samples of different prompts and one seed, over that of the images which the
    prompts describe; at most 1."""
    truth = pairwise(drawn.of_truth())
    of_seeds = [pairwise(samples) for samples in drawn.of_samples()]
    equal = np.full(drawn.num_prompts, 1 / drawn.num_prompts)
    if not mean_of_pairs(truth, equal) > 0:
        raise ValueError("the images that the prompts describe are all the same")

    def statistic(weights: np.ndarray) -> float:
        varied = float(np.mean([mean_of_pairs(one, weights) for one in of_seeds]))
        return min(MOST, varied / mean_of_pairs(truth, weights))

    return Measured(statistic=statistic, features=drawn.label, of_true_images=1.0)


@METRICS.register("seed-diversity", title="variety of the samples of one prompt", embedded=True)
@metric(better="higher")
def seed_diversity(drawn: Drawn) -> Measured:
    """Mean distance (1 - cosine) between samples of one prompt by different seeds. 0: the noise changes nothing."""
    count = drawn.num_seeds
    if count < 2:
        raise ValueError("one sample a prompt says nothing of seeds: ask for 2 or more")
    rows = unit_rows(drawn.of_samples(), drawn.of_reference().mean(0)).double()  # (S, N, D)
    likeness = torch.einsum("snd,tnd->stn", rows, rows)
    others = (1 - likeness).sum(1) / (count - 1)  # a sample is at distance 0 from itself
    return Measured(values=others.clamp_min(0).numpy(), features=drawn.label)


def pairwise(features: torch.Tensor) -> np.ndarray:
    """(N, D) -> (N, N) of 1 - cosine, 0 on the diagonal."""
    rows = torch.nn.functional.normalize(features.double(), dim=1)
    return np.asarray((1 - rows @ rows.T).clamp_min(0).fill_diagonal_(0).numpy())


def mean_of_pairs(distances: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean over pairs of different prompts."""
    return float(weights @ distances @ weights / (weights.sum() ** 2 - (weights**2).sum()))
