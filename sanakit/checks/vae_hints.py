"""What a VAE's failed gate advises, from what was measured: the statistics, the borders, the reconstruction."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sanakit.checks.evidence import VaeEvidence

RECONSTRUCTION_FLOOR = 3.0  # dB over each image's mean colour: what a VAE of no use reaches
LISTED = 32  # channels whose mean and std a hint writes out
NEAR = (
    0.5  # root mean square over channels, in standard deviations (means) or as a logarithm (stds): the same statistics
)

Statistics = tuple[np.ndarray, np.ndarray]  # mean and std by channel
MISTAKES: tuple[tuple[str, Callable[[np.ndarray, np.ndarray], Statistics]], ...] = (
    ("latents_mean and latents_std are exchanged in the config: exchange them", lambda m, s: (s, m)),
    ("latents_std of the config holds 1/std: state the std itself", lambda m, s: (m, 1 / s)),
    ("latents_std of the config holds variances: state their square roots", lambda m, s: (m, np.sqrt(s))),
    ("latents_mean of the config has the opposite sign: state the means themselves", lambda m, s: (-m, s)),
)


def gain_of(evidence: VaeEvidence) -> float:
    """Mean PSNR over each image's mean colour in dB; NaN where it was not measured."""
    if "psnr" not in evidence:
        return math.nan
    return float(np.mean(np.asarray(evidence["psnr"]) - np.asarray(evidence["psnr_of_mean_colour"])))


def normalisation_hint(evidence: VaeEvidence) -> str:
    """What to change in the normalisation: the mistake in the config where one explains the latents, else the measured
    factor where the mean is right, else measured mean and std."""
    factor = f"--set vae.scaling_factor={1 / max(evidence.get('raw_std', 1.0), 1e-12):.4g} (1/std of these images)"
    if "stated_stats" not in evidence:
        return factor
    stated, measured = _pair(evidence["stated_stats"]), _pair(evidence["measured_stats"])
    if mistake := named_mistake(stated, measured):
        return mistake
    if _offset(stated, measured) <= NEAR:
        return factor
    mean, std = measured
    if len(mean) > LISTED:
        lists = f"of its {len(mean)} channels, measured over your images"
    else:
        lists = f"{_listed(mean)} and latents_std {_listed(std)} (measured on these images)"
    return f"state latents_mean {lists}; vae.scaling_factor alone keeps the wrong mean"


def shift_hint(evidence: VaeEvidence) -> str:
    """What to change in the mean, with the channel that is farthest off."""
    if "stated_stats" not in evidence:
        return "the shift, or the mean, of the config was not subtracted"
    stated, measured = _pair(evidence["stated_stats"]), _pair(evidence["measured_stats"])
    if mistake := named_mistake(stated, measured):
        return mistake
    channel = int(np.argmax(np.abs(measured[0] - stated[0]) / np.maximum(measured[1], 1e-12)))
    why = "no mean is subtracted" if not stated[0].any() else "the mean that is subtracted is another one"
    values = f"raw mean {measured[0][channel]:.4g}, subtracted {stated[0][channel]:.4g}"
    return f"{why}: channel {channel} has {values}; state latents_mean or shift_factor in the VAE's config"


def named_mistake(stated: Statistics, measured: Statistics) -> str:
    """The known mistake that turns the stated mean and std by channel into the measured ones; empty where none does, or
    where the stated ones fit as they are."""
    if len(set(stated[0].tolist())) == len(set(stated[1].tolist())) == 1:  # a scaling factor: one number hides nothing
        return ""
    best, text = _misfit(stated, measured), ""
    if best <= NEAR:
        return ""
    for said, change in MISTAKES:
        with np.errstate(all="ignore"):
            misfit = _misfit(change(*stated), measured)
        if misfit < min(best, NEAR):
            best, text = misfit, said
    return text


def seam_hint(evidence: VaeEvidence) -> str:
    """Tiling where nothing crosses the worst border; otherwise the decoder, with what it reconstructs."""
    crossing = evidence.get("seam_crossing")
    if crossing == "none":
        return "the VAE works tile by tile: turn tiling off at this size, or blend overlapping tiles"
    gain = gain_of(evidence)
    back = "" if math.isnan(gain) else f" (images come back {gain:.1f} dB over their mean colour)"
    if crossing is None:
        return (
            "turn tiling off at this size, or blend overlapping tiles; without tiling the decoder is not trained enough"
            + back
        )
    what = "each latent is decoded alone" if crossing == "never" else "values cross this border, so it is no tile's"
    return (
        f"{what}: the decoder is not trained enough to join its patches{back}; train it longer, or take other weights"
    )


def collapse_hint(evidence: VaeEvidence) -> str:
    """What a collapse means by whether the images survive it."""
    gain, share = gain_of(evidence), evidence["effective_channels"] * len(evidence["channel_std"])
    directions = (
        f"the latents vary in about {share:.1f} directions" if math.isfinite(share) else "the latents are not finite"
    )
    if math.isnan(gain):
        return f"{directions}: the VAE is not trained enough, or an adapter was trained before the noising"
    if gain >= RECONSTRUCTION_FLOOR:
        return (
            f"{directions}, while images come back {gain:.1f} dB over their mean colour: "
            "the channels repeat one another; take a VAE with fewer channels or train it longer, "
            "and train no adapter before the noising"
        )
    return (
        f"{directions}, and the images are lost with them ({gain:.1f} dB over their mean colour): "
        "the VAE is untrained or its weights are not the ones meant; train it, or load its weights"
    )


def finite_hint(evidence: VaeEvidence) -> str:
    """Where values stop being finite: in the weights, in half precision, or in fp32."""
    broken, precision = evidence.get("nonfinite_weights"), evidence.get("vae_precision")
    if broken:
        return (
            f"{broken} weights of the VAE are not finite themselves: "
            "take weights saved in fp32, or fetch the file again"
        )
    if precision in ("float16", "bfloat16"):
        return f"the VAE runs in {precision}: load its weights in fp32, or take weights made for half precision"
    if precision:
        return (
            f"the VAE overflows in {precision} with finite weights: check the range of its input, or take other weights"
        )
    return "use weights saved in fp32, or weights made for half precision"


def _pair(stats: tuple[Sequence[float], Sequence[float]]) -> Statistics:
    return np.asarray(stats[0], np.float64), np.asarray(stats[1], np.float64)


def _offset(stated: Statistics, measured: Statistics) -> float:
    """Root mean square over channels of the means' difference, in measured standard deviations."""
    return float(np.sqrt(np.mean(((measured[0] - stated[0]) / np.maximum(measured[1], 1e-12)) ** 2)))


def _misfit(stated: Statistics, measured: Statistics) -> float:
    """The larger of the means' offset and the stds' root mean square log ratio; infinite where a std is not above 0."""
    if not (np.isfinite(stated[0]).all() and np.isfinite(stated[1]).all() and (stated[1] > 0).all()):
        return math.inf
    ratio = np.log(stated[1] / np.maximum(measured[1], 1e-12))
    return max(_offset(stated, measured), float(np.sqrt(np.mean(ratio**2))))


def _listed(values: Any) -> str:
    return f"[{', '.join(f'{value:.3g}' for value in values)}]"
