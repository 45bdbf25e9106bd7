"""Gates of the stages smoke and full on the system's wiring: does the base work, do training and sampling agree, did
what should move move. They stand before the gates on its quality."""

from typing import Any

import numpy as np

from sanakit.checks.base import GATES, Measurement, mean_of, rule
from sanakit.checks.evidence import QualityEvidence, SmokeEvidence
from sanakit.checks.vae import fold

SAMPLES: dict[str, Any] = {  # of the two stages' gate on samples
    "code": "SK0507",
    "metric": "spread of sampled latents over the data's, either way",
    "needs": ("sample_spread",),
    "hint": "check the sign of the velocity, the sigmas and the scale that the sampler uses",
}


@GATES.register("smoke/base", title="the base denoises its own latents", embedded=True)
@rule(
    code="SK0520",
    metric="loss saved by the base over a linear guess",
    above=(0, 0),
    definition="better than knowing nothing but the latents' power",
    needs=("base_losses", "linear_losses"),
    hint="this is not the VAE or the scale that the base was trained with",
)
def base(evidence: SmokeEvidence) -> Measurement:
    """Held-out velocity loss against the best map `c * noisy` that knows nothing but the latents' power. A core on the
    latents of another VAE, however well they fit by shape, does not beat it."""
    return mean_of(np.asarray(evidence["linear_losses"]) - np.asarray(evidence["base_losses"]))


@GATES.register("smoke/mask", title="the base expects the attention mask it is given", embedded=True)
@rule(
    code="SK0521",
    metric="share of the loss saved by the mask",
    at_least=(-0.05, -0.02),
    needs=("masked_losses", "unmasked_losses"),
    hint="sample and train with the mask that the base was trained with",
)
def mask(evidence: SmokeEvidence) -> Measurement:
    """Held-out loss with every token visible less the loss with the mask, over the loss: below zero the core was
    trained without."""
    masked = np.asarray(evidence["masked_losses"])
    return mean_of((np.asarray(evidence["unmasked_losses"]) - masked) / masked.mean())


@GATES.register("smoke/data-order", title="an epoch visits every image once", embedded=True)
@rule(
    code="SK0522",
    metric="distinct images drawn over those that an epoch holds",
    at_least=(1, 1),
    definition="an epoch is every image once",
    needs=("distinct_share",),
    hint="the order must depend on the step; check what resuming restores",
)
def data_order(evidence: SmokeEvidence) -> float:
    return evidence["distinct_share"]


@GATES.register("smoke/flow-shift", title="training and sampling use one flow shift", embedded=True)
@rule(
    code="SK0523",
    at_most=(1.2, 1.1),
    needs=("train_shift", "sample_shift"),
    hint="set flow_shift once, in the card that training and sampling read",
)
def flow_shift(evidence: SmokeEvidence) -> Measurement:
    """Shift from the median of the sigmas that training draws, over the one from the sampler's steps."""
    trained, sampled = evidence["train_shift"], evidence["sample_shift"]
    value, _ = fold(trained / sampled, (trained / sampled, trained / sampled))
    metric = f"training {trained:.2f}, sampling {sampled:.2f}, one over the other"
    return Measurement(value=value, metric=metric)


@GATES.register("smoke/moved", title="what is trained moved, what is frozen did not", embedded=True)
@rule(
    code="SK0508",
    at_most=(0, 0),
    definition="none may stand still or stray",
    needs=("stuck_parameters", "strayed_parameters"),
    hint="train in fp32, or raise the learning rate; check the optimiser's groups",
)
def moved(evidence: SmokeEvidence) -> Measurement:
    stuck, strayed = evidence["stuck_parameters"], evidence["strayed_parameters"]
    names = [*stuck[:1], *strayed[:1]]
    metric = f"{len(stuck)} trained stand still, {len(strayed)} frozen moved{': ' if names else ''}{', '.join(names)}"
    return Measurement(value=len(stuck) + len(strayed), metric=metric)


@GATES.register("smoke/average", title="the moving average follows the weights", embedded=True)
@rule(
    code="SK0524",
    metric="movement of the average over that of the weights",
    at_least=(1e-3, 1e-2),
    needs=("average_moved",),
    hint="update the average after every optimiser step",
)
def average(evidence: SmokeEvidence) -> float:
    return evidence["average_moved"]


@GATES.register("smoke/samples", title="samples are as wide as the data", embedded=True)
@rule(**SAMPLES, at_most=(1.6, 1.4))
def smoke_samples(evidence: QualityEvidence) -> Measurement:
    return _sample_spread(evidence)


@GATES.register("full/samples", title="samples are as wide as the data", embedded=True)
@rule(**SAMPLES, at_most=(1.6, 1.4))
def full_samples(evidence: QualityEvidence) -> Measurement:
    return _sample_spread(evidence)


def _sample_spread(evidence: QualityEvidence) -> Measurement:
    """Spread of sampled latents over the data's, folded: a low loss with samples that explode or vanish
    means that sampling is not the inverse of training."""
    folded = [fold(float(ratio), (ratio, ratio))[0] for ratio in evidence["sample_spread"]]
    return mean_of(folded, statistic=np.median)
