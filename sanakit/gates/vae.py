"""Gates of stage component for a VAE."""

import numpy as np

from sanakit.contracts import GateResult
from sanakit.gates.base import GATES, Evidence, gate_result, interval


@GATES.register("component/finite-latents", title="latents are finite", embedded=True)
def finite_latents(evidence: Evidence) -> GateResult | None:
    if "nonfinite_latents" not in evidence:
        return None
    return gate_result(
        gate="component/finite-latents",
        code="SK0204",
        metric="values not finite",
        value=evidence["nonfinite_latents"],
        threshold=0,
        at_least=False,
        hint="run the VAE in fp32",
    )


@GATES.register("component/geometry", title="measured ratio and channels are the declared ones", embedded=True)
def geometry(evidence: Evidence) -> GateResult | None:
    if "measured_spec" not in evidence:
        return None
    measured, declared = evidence["measured_spec"], evidence["declared_spec"]
    return gate_result(
        gate="component/geometry",
        code="SK0202",
        metric=f"{measured.label} measured, {declared.label} declared",
        value=float(measured != declared),
        threshold=0,
        at_least=False,
        hint=f"declare {measured.label}",
    )


@GATES.register("component/reconstruction", title="reconstruction is above the floor", embedded=True)
def reconstruction(evidence: Evidence) -> GateResult | None:
    """The floor is a picture's own mean colour plus 3 dB: what a VAE of no use reaches. Reconstruction is a floor
    only; generation does not rank by it."""
    if "psnr" not in evidence:
        return None
    value, ci = interval(evidence["psnr"])
    floor = float(np.mean(evidence["psnr_of_mean_colour"])) + 3
    return gate_result(
        gate="component/reconstruction",
        code="SK0201",
        metric="PSNR (dB)",
        value=value,
        ci=ci,
        threshold=floor,
        at_least=True,
        hint="check input range, weights, and that encoder and decoder belong together",
    )


@GATES.register("component/scale-high", title="latents are not too wide", embedded=True)
def scale_high(evidence: Evidence) -> GateResult | None:
    return _scale(evidence, "component/scale-high", 1.4, at_least=False)


@GATES.register("component/scale-low", title="latents are not too narrow", embedded=True)
def scale_low(evidence: Evidence) -> GateResult | None:
    return _scale(evidence, "component/scale-low", 0.7, at_least=True)


def _scale(evidence: Evidence, gate: str, threshold: float, *, at_least: bool) -> GateResult | None:
    if "latent_power" not in evidence:
        return None
    value, ci = interval(np.asarray(evidence["latent_power"]), statistic=_root_mean)
    return gate_result(
        gate=gate,
        code="SK0203",
        metric="latent standard deviation",
        value=value,
        ci=ci,
        threshold=threshold,
        at_least=at_least,
        hint=f"--set vae.scaling_factor={1 / evidence['raw_std']:.4g} (1/std of these pictures)",
    )


def _root_mean(power: np.ndarray, axis: int | None = None) -> np.ndarray:
    return np.sqrt(np.mean(power, axis=axis))


@GATES.register("component/dead-channels", title="every latent channel varies", embedded=True)
def dead_channels(evidence: Evidence) -> GateResult | None:
    if "channel_std" not in evidence:
        return None
    std = np.asarray(evidence["channel_std"])
    return gate_result(
        gate="component/dead-channels",
        code="SK0205",
        metric=f"smallest channel std (channel {int(std.argmin())})",
        value=float(std.min()),
        threshold=0.02,
        at_least=True,
        hint="a dead channel carries nothing",
    )
