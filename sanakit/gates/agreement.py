"""Gates of the stages smoke and full on the system's wiring: does the base work, do training and sampling agree, did what should
move move. They stand before the gates on its quality."""

import numpy as np

from sanakit.contracts import GateResult
from sanakit.gates.base import GATES, Evidence, gate_result, interval
from sanakit.gates.vae import fold


@GATES.register("smoke/base", title="the base denoises its own latents", embedded=True)
def base(evidence: Evidence) -> GateResult | None:
    """Held-out velocity loss against the best map `c * noisy` that knows nothing but the latents' power. A core on the
    latents of another VAE, however well they fit by shape, does not beat it."""
    if "base_losses" not in evidence:
        return None
    gain = np.asarray(evidence["linear_losses"]) - np.asarray(evidence["base_losses"])
    value, ci = interval(gain)
    return gate_result(
        gate="smoke/base",
        code="SK0520",
        metric="loss saved by the base over a linear guess",
        value=value,
        ci=ci,
        samples=len(gain),
        at_least=True,
        above=True,
        hint="this is not the VAE or the scale that the base was trained with",
    )


@GATES.register("smoke/mask", title="the base expects the attention mask it is given", embedded=True)
def mask(evidence: Evidence) -> GateResult | None:
    """Held-out loss with every token visible less the loss with the mask, over the loss: below zero the core was
    trained without."""
    if "unmasked_losses" not in evidence:
        return None
    masked = np.asarray(evidence["masked_losses"])
    value, ci = interval((np.asarray(evidence["unmasked_losses"]) - masked) / masked.mean())
    return gate_result(
        gate="smoke/mask",
        code="SK0521",
        metric="share of the loss saved by the mask",
        value=value,
        ci=ci,
        samples=len(masked),
        at_least=True,
        hint="sample and train with the mask that the base was trained with",
    )


@GATES.register("smoke/data-order", title="an epoch visits every picture once", embedded=True)
def data_order(evidence: Evidence) -> GateResult | None:
    if "distinct_share" not in evidence:
        return None
    return gate_result(
        gate="smoke/data-order",
        code="SK0522",
        metric="distinct pictures drawn over those that an epoch holds",
        value=evidence["distinct_share"],
        at_least=True,
        hint="the order must depend on the step; check what resuming restores",
    )


@GATES.register("smoke/flow-shift", title="training and sampling use one flow shift", embedded=True)
def flow_shift(evidence: Evidence) -> GateResult | None:
    """Shift from the median of the sigmas that training draws, over the one from the sampler's steps."""
    if "train_shift" not in evidence:
        return None
    ratio = evidence["train_shift"] / evidence["sample_shift"]
    value, _ = fold(ratio, (ratio, ratio))
    return gate_result(
        gate="smoke/flow-shift",
        code="SK0523",
        metric=f"training {evidence['train_shift']:.2f}, sampling {evidence['sample_shift']:.2f}, one over the other",
        value=value,
        at_least=False,
        hint="set flow_shift once, in the card that training and sampling read",
    )


@GATES.register("smoke/moved", title="what is trained moved, what is frozen did not", embedded=True)
def moved(evidence: Evidence) -> GateResult | None:
    if "stuck_parameters" not in evidence:
        return None
    stuck, strayed = evidence["stuck_parameters"], evidence["strayed_parameters"]
    names = [*stuck[:1], *strayed[:1]]
    return gate_result(
        gate="smoke/moved",
        code="SK0508",
        metric=f"{len(stuck)} trained stand still, {len(strayed)} frozen moved{': ' if names else ''}{', '.join(names)}",
        value=len(stuck) + len(strayed),
        at_least=False,
        hint="train in fp32, or raise the learning rate; check the optimiser's groups",
    )


@GATES.register("smoke/average", title="the moving average follows the weights", embedded=True)
def average(evidence: Evidence) -> GateResult | None:
    if "average_moved" not in evidence:
        return None
    return gate_result(
        gate="smoke/average",
        code="SK0524",
        metric="way of the average over the weights' own",
        value=evidence["average_moved"],
        at_least=True,
        hint="update the average after every optimiser step",
    )


@GATES.register("smoke/samples", title="samples are as wide as the data", embedded=True)
def smoke_samples(evidence: Evidence) -> GateResult | None:
    return _samples(evidence, "smoke/samples")


@GATES.register("full/samples", title="samples are as wide as the data", embedded=True)
def full_samples(evidence: Evidence) -> GateResult | None:
    return _samples(evidence, "full/samples")


def _samples(evidence: Evidence, gate: str) -> GateResult | None:
    """Spread of sampled latents over the data's, folded: a loss that looks good with samples that explode or vanish
    means that sampling is not the inverse of training."""
    if "sample_spread" not in evidence:
        return None
    value, ci = interval([fold(float(r), (r, r))[0] for r in evidence["sample_spread"]], statistic=np.median)
    return gate_result(
        gate=gate,
        code="SK0507",
        metric="spread of sampled latents over the data's, either way",
        value=value,
        ci=ci,
        samples=len(evidence["sample_spread"]),
        at_least=False,
        hint="check the sign of the velocity, the sigmas and the scale that the sampler uses",
    )
