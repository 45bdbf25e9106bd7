"""Gates of stage component for a VAE; a cause stands before what follows from it."""

import numpy as np

from sanakit.contracts import GateResult
from sanakit.gates.base import GATES, Evidence, gate_result, interval, ratio_interval
from sanakit.gates.vae_hints import collapse_hint, finite_hint, normalisation_hint, seam_hint, shift_hint

EXPLAINED = 0.3  # share of the pictures' variance that an affine map of the reconstruction must explain to be judged


@GATES.register("component/finite-latents", title="latents are finite at the training size", embedded=True)
def finite_latents(evidence: Evidence) -> GateResult | None:
    if "nonfinite_latents" not in evidence:
        return None
    return gate_result(
        gate="component/finite-latents",
        code="SK0204",
        metric="values not finite, latents and reconstructions",
        value=evidence["nonfinite_latents"],
        at_least=False,
        hint=finite_hint(evidence),
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
        at_least=False,
        hint=f"declare {measured.label}",
    )


@GATES.register("component/repeatable-latents", title="the same picture has the same latents twice", embedded=True)
def repeatable_latents(evidence: Evidence) -> GateResult | None:
    if "latent_repeat_difference" not in evidence:
        return None
    return gate_result(
        gate="component/repeatable-latents",
        code="SK0216",
        metric="relative change when encoded again",
        value=evidence["latent_repeat_difference"],
        at_least=False,
        hint="take the posterior's mode and call eval(): no sampling, no dropout",
    )


@GATES.register("component/normalisation", title="denormalising undoes normalising", embedded=True)
def normalisation(evidence: Evidence) -> GateResult | None:
    """Training reads normalised latents, sampling decodes denormalised ones: one must undo the other."""
    if "normalisation_error" not in evidence:
        return None
    return gate_result(
        gate="component/normalisation",
        code="SK0215",
        metric="relative error of normalise, then denormalise",
        value=evidence["normalisation_error"],
        at_least=False,
        hint="use the same mean and std on both sides; some pipelines drop the shift",
    )


@GATES.register("component/input-range", title="pictures come back in the range they went in", embedded=True)
def input_range(evidence: Evidence) -> GateResult | None:
    """Slope of the picture on its reconstruction: 1 for any least-squares autoencoder, however blurred; 2 where [0, 1]
    goes into a VAE of [-1, 1]. Judged only where the reconstruction resembles the picture at all."""
    if "picture_covariance" not in evidence or not evidence["affine_r2"] > EXPLAINED:
        return None
    slope, ci = ratio_interval(evidence["picture_covariance"], evidence["reconstruction_variance"])
    folded, bounds = fold(slope, ci)
    return gate_result(
        gate="component/input-range",
        code="SK0210",
        metric=f"range ratio (slope of pictures on reconstructions {slope:.2f})",
        value=folded,
        ci=bounds,
        samples=len(evidence["picture_covariance"]),
        at_least=False,
        hint="the VAE expects another input range: feed [-1, 1]",
    )


def fold(ratio: float, ci: tuple[float, float]) -> tuple[float, tuple[float, float]]:
    """A ratio as its distance from 1 either way: 0.5 and 2 both read 2."""
    ends = [max(v, 1 / v) if v > 0 else np.inf for v in ci]
    low = 1.0 if ci[0] <= 1 <= ci[1] else min(ends)
    return (max(ratio, 1 / ratio) if ratio > 0 else np.inf), (low, max(ends))


@GATES.register("component/channel-order", title="red stays red, green green, blue blue", embedded=True)
def channel_order(evidence: Evidence) -> GateResult | None:
    return _order(evidence, "channel_order_psnr", "component/channel-order", "SK0211", "feed RGB: OpenCV reads BGR")


@GATES.register("component/orientation", title="up stays up and left stays left", embedded=True)
def orientation(evidence: Evidence) -> GateResult | None:
    hint = "apply EXIF rotation when reading; check the order of height and width"
    return _order(evidence, "orientation_psnr", "component/orientation", "SK0212", hint)


def _order(evidence: Evidence, key: str, gate: str, code: str, hint: str) -> GateResult | None:
    """PSNR that another order of the reconstruction would gain over its own, per picture; the best other order."""
    if key not in evidence:
        return None
    others = {name: np.asarray(values) - evidence["psnr"] for name, values in evidence[key].items()}
    best = max(others, key=lambda name: others[name].mean())
    value, ci = interval(others[best])
    return gate_result(
        gate=gate,
        code=code,
        metric=f"dB gained by {best} reconstructions",
        value=value,
        ci=ci,
        samples=len(others[best]),
        at_least=False,
        hint=hint,
    )


@GATES.register("component/seams", title="no seam between tiles", embedded=True)
def seams(evidence: Evidence) -> GateResult | None:
    """Jump of the error across each border of the latent grid over its jumps around: the worst border over the median
    one. Patches step at every border alike; a tile steps at its own."""
    if "seam_ratio" not in evidence or not evidence["affine_r2"] > EXPLAINED:
        return None
    return gate_result(
        gate="component/seams",
        code="SK0213",
        metric=f"worst grid border over the median one ({evidence['seam_place']})",
        value=evidence["seam_ratio"],
        at_least=False,
        hint=seam_hint(evidence),
    )


@GATES.register("component/reconstruction", title="reconstruction is above the floor", embedded=True)
def reconstruction(evidence: Evidence) -> GateResult | None:
    """The floor is a picture's own mean colour plus 3 dB: what a VAE of no use reaches. Reconstruction is a floor
    only; generation does not rank by it."""
    if "psnr" not in evidence:
        return None
    gain = np.asarray(evidence["psnr"]) - np.asarray(evidence["psnr_of_mean_colour"])
    value, ci = interval(gain)
    return gate_result(
        gate="component/reconstruction",
        code="SK0201",
        metric="PSNR over each picture's mean colour (dB)",
        value=value,
        ci=ci,
        samples=len(gain),
        at_least=True,
        hint="check the weights, and that encoder and decoder belong together",
    )


@GATES.register("component/scale-high", title="latents are not too wide", embedded=True)
def scale_high(evidence: Evidence) -> GateResult | None:
    return _scale(evidence, "component/scale-high", at_least=False)


@GATES.register("component/scale-low", title="latents are not too narrow", embedded=True)
def scale_low(evidence: Evidence) -> GateResult | None:
    return _scale(evidence, "component/scale-low", at_least=True)


def _scale(evidence: Evidence, gate: str, *, at_least: bool) -> GateResult | None:
    if "latent_power" not in evidence:
        return None
    value, ci = interval(np.asarray(evidence["latent_power"]), statistic=_root_mean)
    return gate_result(
        gate=gate,
        code="SK0203",
        metric="latent standard deviation",
        value=value,
        ci=ci,
        samples=len(evidence["latent_power"]),
        at_least=at_least,
        hint=normalisation_hint(evidence),
    )


def _root_mean(power: np.ndarray, axis: int | None = None) -> np.ndarray:
    return np.sqrt(np.mean(power, axis=axis))


@GATES.register("component/shift", title="latents are centred", embedded=True)
def shift(evidence: Evidence) -> GateResult | None:
    """Root mean square over channels of each channel's mean in its own standard deviations: per picture the mean of
    each channel, so that the interval is over pictures."""
    if "channel_means" not in evidence:
        return None
    means = np.asarray(evidence["channel_means"], np.float64)  # (N, C), in standard deviations
    value, ci = interval(means, statistic=_offset)
    return gate_result(
        gate="component/shift",
        code="SK0209",
        metric="offset of the latents (standard deviations)",
        value=value,
        ci=ci,
        samples=len(means),
        at_least=False,
        hint=shift_hint(evidence),
    )


def _offset(means: np.ndarray, axis: int = 0) -> np.ndarray:
    return np.sqrt(np.square(means.mean(axis)).mean(-1))


@GATES.register("component/collapse", title="channels carry different things", embedded=True)
def collapse(evidence: Evidence) -> GateResult | None:
    if "effective_channels" not in evidence:
        return None
    count = len(evidence["channel_std"])
    return gate_result(
        gate="component/collapse",
        code="SK0214",
        metric=f"effective share of {count} channels (entropy of their correlation)",
        value=evidence["effective_channels"],
        at_least=True,
        hint=collapse_hint(evidence),
    )


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
        at_least=True,
        hint="a dead channel carries nothing",
    )
