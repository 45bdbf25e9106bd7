"""Gates of stage component for a VAE; a cause stands before what follows from it."""

import numpy as np

from sanakit.checks.base import GATES, Measurement, NotApplied, mean_of, ratio_interval, rule
from sanakit.checks.evidence import VaeEvidence
from sanakit.checks.vae_hints import (
    RECONSTRUCTION_FLOOR,
    collapse_hint,
    finite_hint,
    normalisation_hint,
    seam_hint,
    shift_hint,
)

EXPLAINED = 0.3  # share of the images' variance that an affine map of the reconstruction must explain to be evaluated
UNLIKE = NotApplied("the reconstruction does not resemble the image: component/reconstruction evaluates that")


@GATES.register("component/finite-latents", title="latents are finite at the training size", embedded=True)
@rule(
    code="SK0204",
    metric="values not finite, latents and reconstructions",
    at_most=(0, 0),
    definition="none may be NaN or Inf",
    needs=("nonfinite_latents",),
)
def finite_latents(evidence: VaeEvidence) -> Measurement:
    return Measurement(value=evidence["nonfinite_latents"], hint=finite_hint(evidence))


@GATES.register("component/geometry", title="measured ratio and channels are the declared ones", embedded=True)
@rule(
    code="SK0202",
    at_most=(0, 0),
    definition="what is measured is what is declared",
    needs=("measured_spec", "declared_spec"),
)
def geometry(evidence: VaeEvidence) -> Measurement:
    measured, declared = evidence["measured_spec"], evidence["declared_spec"]
    metric = f"{measured.label} measured, {declared.label} declared"
    return Measurement(value=float(measured != declared), metric=metric, hint=f"declare {measured.label}")


@GATES.register("component/repeatable-latents", title="the same image has the same latents twice", embedded=True)
@rule(
    code="SK0216",
    metric="relative change when encoded again",
    at_most=(1e-3, 1e-4),
    definition="numerical identity, the same batch twice",
    needs=("latent_repeat_difference",),
    hint="take the posterior's mode and call eval(): no sampling, no dropout",
)
def repeatable_latents(evidence: VaeEvidence) -> float:
    return evidence["latent_repeat_difference"]


@GATES.register("component/normalisation", title="denormalising undoes normalising", embedded=True)
@rule(
    code="SK0215",
    metric="relative error of normalise, then denormalise",
    at_most=(1e-3, 1e-4),
    definition="numerical identity",
    needs=("normalisation_error",),
    hint="use the same mean and std on both sides; some pipelines drop the shift",
)
def normalisation(evidence: VaeEvidence) -> float:
    """Training reads normalised latents, sampling decodes denormalised ones: one must undo the other."""
    return evidence["normalisation_error"]


@GATES.register("component/input-range", title="images come back in the range they went in", embedded=True)
@rule(
    code="SK0210",
    at_most=(1.25, 1.1),
    needs=("image_covariance", "reconstruction_variance", "affine_r2"),
    hint="the VAE expects another input range: feed [-1, 1]",
)
def input_range(evidence: VaeEvidence) -> Measurement | NotApplied:
    """Slope of the image on its reconstruction: 1 for any least-squares autoencoder, however blurred; 2 where [0, 1]
    goes into a VAE of [-1, 1]. Evaluated only where the reconstruction resembles the image at all."""
    if not evidence["affine_r2"] > EXPLAINED:
        return UNLIKE
    slope, ci = ratio_interval(evidence["image_covariance"], evidence["reconstruction_variance"])
    folded, bounds = fold(slope, ci)
    metric = f"range ratio (slope of images on reconstructions {slope:.2f})"
    hint = "reconstructions vary more than the images: the decoder gives another range, or it is poor on these images"
    samples = len(evidence["image_covariance"])
    return Measurement(value=folded, ci=bounds, samples=samples, metric=metric, hint=hint if slope < 1 else "")


def fold(ratio: float, ci: tuple[float, float]) -> tuple[float, tuple[float, float]]:
    """A ratio as its distance from 1 either way: 0.5 and 2 both read 2."""
    ends = [max(v, 1 / v) if v > 0 else np.inf for v in ci]
    low = 1.0 if ci[0] <= 1 <= ci[1] else min(ends)
    return (max(ratio, 1 / ratio) if ratio > 0 else np.inf), (low, max(ends))


@GATES.register("component/channel-order", title="red stays red, green green, blue blue", embedded=True)
@rule(code="SK0211", at_most=(0.5, 0.25), needs=("channel_order_psnr", "psnr"), hint="feed RGB: OpenCV reads BGR")
def channel_order(evidence: VaeEvidence) -> Measurement:
    return _best_other_order(evidence["channel_order_psnr"], evidence["psnr"])


@GATES.register("component/orientation", title="up stays up and left stays left", embedded=True)
@rule(
    code="SK0212",
    at_most=(0.5, 0.25),
    needs=("orientation_psnr", "psnr"),
    hint="apply EXIF rotation when reading; check the order of height and width",
)
def orientation(evidence: VaeEvidence) -> Measurement:
    return _best_other_order(evidence["orientation_psnr"], evidence["psnr"])


def _best_other_order(others: dict[str, np.ndarray], psnr: np.ndarray) -> Measurement:
    """PSNR that another order of the reconstruction would gain over its own, per image; the best other order."""
    gains = {name: np.asarray(values) - psnr for name, values in others.items()}
    best = max(gains, key=lambda name: gains[name].mean())
    return mean_of(gains[best], metric=f"dB gained by {best} reconstructions")


@GATES.register("component/seams", title="no seam between tiles", embedded=True)
@rule(code="SK0213", at_most=(1.65, 1.55), needs=("seam_ratio", "seam_place", "affine_r2"))
def seams(evidence: VaeEvidence) -> Measurement | NotApplied:
    """Jump of the error across each border of the latent grid over its jumps around: the worst border over the median
    one. Patches step at every border alike; a tile steps at its own."""
    if not evidence["affine_r2"] > EXPLAINED:
        return UNLIKE
    metric = f"worst grid border over the median one ({evidence['seam_place']})"
    return Measurement(value=evidence["seam_ratio"], metric=metric, hint=seam_hint(evidence))


@GATES.register("component/reconstruction", title="reconstruction is above the floor", embedded=True)
@rule(
    code="SK0201",
    metric="PSNR over each image's mean colour (dB)",
    at_least=(RECONSTRUCTION_FLOOR, 4.0),
    needs=("psnr", "psnr_of_mean_colour"),
    hint="check the weights, and that encoder and decoder belong together",
)
def reconstruction(evidence: VaeEvidence) -> Measurement:
    """The floor is an image's own mean colour plus 3 dB: what a VAE of no use reaches. Reconstruction is a floor
    only; generation does not rank by it."""
    return mean_of(np.asarray(evidence["psnr"]) - np.asarray(evidence["psnr_of_mean_colour"]))


@GATES.register("component/scale-high", title="latents are not too wide", embedded=True)
@rule(code="SK0203", metric="latent standard deviation", at_most=(1.6, 1.4), needs=("latent_power",))
def scale_high(evidence: VaeEvidence) -> Measurement:
    return _spread(evidence)


@GATES.register("component/scale-low", title="latents are not too narrow", embedded=True)
@rule(code="SK0203", metric="latent standard deviation", at_least=(0.55, 0.6), needs=("latent_power",))
def scale_low(evidence: VaeEvidence) -> Measurement:
    return _spread(evidence)


def _spread(evidence: VaeEvidence) -> Measurement:
    return mean_of(evidence["latent_power"], statistic=_root_mean, hint=normalisation_hint(evidence))


def _root_mean(power: np.ndarray, axis: int | None = None) -> np.ndarray:
    return np.asarray(np.sqrt(np.mean(power, axis=axis)))


@GATES.register("component/shift", title="latents are centred", embedded=True)
@rule(
    code="SK0209",
    metric="offset of the latents (standard deviations)",
    at_most=(1.5, 1.25),
    needs=("channel_means",),
)
def shift(evidence: VaeEvidence) -> Measurement:
    """Root mean square over channels of each channel's mean in its own standard deviations: per image the mean of
    each channel, so that the interval is over images."""
    return mean_of(evidence["channel_means"], statistic=_offset, hint=shift_hint(evidence))


def _offset(means: np.ndarray, axis: int = 0) -> np.ndarray:
    return np.asarray(np.sqrt(np.square(means.mean(axis)).mean(-1)))


@GATES.register("component/collapse", title="channels carry different things", embedded=True)
@rule(code="SK0214", at_least=(0.35, 0.45), needs=("effective_channels", "channel_std"))
def collapse(evidence: VaeEvidence) -> Measurement:
    metric = f"effective share of {len(evidence['channel_std'])} channels (entropy of their correlation)"
    return Measurement(value=evidence["effective_channels"], metric=metric, hint=collapse_hint(evidence))


@GATES.register("component/dead-channels", title="every latent channel varies", embedded=True)
@rule(code="SK0205", at_least=(0.02, 0.1), needs=("channel_std",), hint="a dead channel carries nothing")
def dead_channels(evidence: VaeEvidence) -> Measurement:
    std = np.asarray(evidence["channel_std"])
    return Measurement(value=float(std.min()), metric=f"smallest channel std (channel {int(std.argmin())})")
