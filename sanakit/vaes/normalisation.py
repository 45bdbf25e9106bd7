"""What a VAE's config.json says of its normalisation, and whether that can be applied:
`latents = (raw - mean) / std`."""

import math
from typing import Any

from sanakit.contracts import LatentStats
from sanakit.errors import SanakitError

OWN = "sanakit_normalisation"  # in the config of a family whose keys of diffusers mean something else


def per_channel(config: dict[str, Any]) -> LatentStats | None:
    """latents_mean with latents_std, None where one of them is not stated. Raises SK0127 for what is no number."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return None
    return LatentStats(mean=numbers("latents_mean", mean), std=numbers("latents_std", std))


def affine(config: dict[str, Any]) -> LatentStats | None:
    """latents_mean with latents_std, else scaling_factor with shift_factor, else None.
    Raises SK0127 for what is no number."""
    if (stated := per_channel(config)) is not None:
        return stated
    scale = config.get("scaling_factor")
    if scale is None:
        return None
    shift = one_number("shift_factor", config.get("shift_factor") or 0.0)
    return from_scaling(one_number("scaling_factor", scale), shift)


def state_affine(config: dict[str, Any], stats: LatentStats, channels: int) -> None:
    """Changes a config so that `affine` reads `stats` from it: by factor and shift where they say it, else per channel.
    One statement; diffusers' pipelines would apply both."""
    mean, std = stats.mean, stats.std
    uniform = len(set(mean)) == len(set(std)) == 1
    listed = config.get("latents_mean") is not None  # it goes before a scaling factor when read back
    by_factor = "scaling_factor" in config and (mean[0] == 0 or "shift_factor" in config)
    if uniform and not listed and (by_factor or (mean[0], std[0]) == (0, 1)):
        config["scaling_factor"] = 1 / std[0]
        if "shift_factor" in config:
            config["shift_factor"] = mean[0]
    else:
        config["latents_mean"] = list(mean * channels)[:channels]
        config["latents_std"] = list(std * channels)[:channels]
        if "scaling_factor" in config:
            config["scaling_factor"] = 1.0
        config.pop("shift_factor", None)


def own_stats(config: dict[str, Any]) -> LatentStats:
    """What `state_own` has written, the identity where there is nothing. Raises SK0127."""
    stated = config.get(OWN) or {}
    if not isinstance(stated, dict):
        raise SanakitError("SK0127", f"{OWN} is {stated!r:.80}, expected latents_mean and latents_std")
    return per_channel(stated) or LatentStats()


def state_own(config: dict[str, Any], stats: LatentStats) -> None:
    """Changes a config so that `own_stats` reads `stats` from it, and leaves diffusers' keys alone."""
    config.pop(OWN, None)
    if stats != LatentStats():
        config[OWN] = {"latents_mean": list(stats.mean), "latents_std": list(stats.std)}


def from_scaling(scale: float, shift: float = 0.0) -> LatentStats:
    """The mean and std that a scaling factor and a shift state. Raises SK0127 for a factor that is not above 0."""
    if not (math.isfinite(scale) and scale > 0):
        raise SanakitError("SK0127", f"scaling_factor is {scale:g}, expected a finite number above 0")
    return LatentStats.from_scaling(scale, shift)


def numbers(key: str, value: Any) -> tuple[float, ...]:
    """One number or a list of numbers as a tuple. Raises SK0127."""
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise SanakitError("SK0127", f"{key} is {value!r:.80}, expected a number or a list of numbers")
    return tuple(float(v) for v in values)


def one_number(key: str, value: Any) -> float:
    values = numbers(key, value)
    if len(values) > 1:
        raise SanakitError("SK0127", f"{key} is {value!r:.80}, expected one number")
    return values[0]


def both_stated(config: dict[str, Any], taken: LatentStats) -> str:
    """Which statement was taken where the config makes two, or half of one; empty where there is one. A factor of 1
    with no shift says nothing."""
    mean, std = config.get("latents_mean") is not None, config.get("latents_std") is not None
    scale, shift = config.get("scaling_factor"), config.get("shift_factor")
    if mean != std:
        have, lacks = ("latents_mean", "latents_std") if mean else ("latents_std", "latents_mean")
        used = "scaling_factor" if scale is not None else "the record"
        return f"states {have} without {lacks}: it is not used, {used} is"
    if not mean or (scale in (None, 1) and not shift):
        return ""
    other = "scaling_factor" if not shift else "scaling_factor and shift_factor"
    width = sum(taken.std) / len(taken.std)
    return (
        f"states latents_mean and latents_std (mean std {width:.4g}) and {other} (1/{scale:g} = {1 / scale:.4g}): "
        f"mean and std were taken, {other} not"
        if scale
        else f"states latents_mean and latents_std, and {other}: mean and std were taken, {other} not"
    )


def require_usable(name: str, stats: LatentStats) -> None:
    """Raises SK0127 for a std that is not above zero or not finite, or a mean that is not finite;
    names a likely exchange."""
    wrong = [(i, v) for i, v in enumerate(stats.std) if not (math.isfinite(v) and v > 0)]
    if wrong:
        channel, value = wrong[0]
        raise SanakitError(
            "SK0127",
            f"{name}: the std of {len(wrong)} of {len(stats.std)} channels is not above 0, first channel {channel}: "
            f"{value:g}",
            cause=exchanged(stats),
            fix="Exchange latents_mean and latents_std in the config." if exchanged(stats) else None,
        )
    infinite = [(i, v) for i, v in enumerate(stats.mean) if not math.isfinite(v)]
    if infinite:
        raise SanakitError(
            "SK0127", f"{name}: the mean of channel {infinite[0][0]} is {infinite[0][1]}, expected a number"
        )


def exchanged(stats: LatentStats) -> str | None:
    """Why mean and std seem exchanged: the one has values below zero, and the other has none;
    None where they do not."""
    if len(stats.mean) > 1 and all(v > 0 for v in stats.mean) and any(v < 0 for v in stats.std):
        return "Mean and std seem exchanged: all means are above 0, and the std has values below 0."
    return None
