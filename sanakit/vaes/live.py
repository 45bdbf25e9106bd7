"""A VAE from a diffusers autoencoder that is in memory already."""

import copy
import warnings
from dataclasses import replace
from typing import Any

from sanakit.contracts import LatentStats
from sanakit.errors import SanakitError, warning_text
from sanakit.vaes.base import VAE
from sanakit.vaes.diffusers_vae import ALLOWED_CLASSES, DiffusersVAE, diffusers_spec, wrapper_named
from sanakit.vaes.normalisation import both_stated, from_scaling, require_usable


def wrap_autoencoder(model: Any, *, scaling_factor: float | None = None, stats: LatentStats | None = None) -> VAE:
    """A diffusers autoencoder as a VAE, in its own precision and on its own device; it is frozen and put into eval
    mode. Geometry is measured on a grey image.

    stats: the normalisation; None reads what the config states itself, as the library's defaults are guesses.
    scaling_factor: instead of the stated one. Raises SK0106 (not a diffusers autoencoder of the allowlist) or SK0127;
    warns SK0208 where nothing is stated.
    """
    name = type(model).__name__
    if name not in ALLOWED_CLASSES or not hasattr(model, "config"):
        raise SanakitError(
            "SK0106",
            f"a {name} is no autoencoder that sanakit reads, expected one of {', '.join(ALLOWED_CLASSES)} of diffusers",
            fix="Wrap it: a subclass of sanakit.vaes.VAE with `_encode` and `_decode` (docs/adding-a-component.md).",
        )
    config = stated_config(model)
    wrapper: type[DiffusersVAE] = wrapper_named(name, config)
    note = ""
    if stats is None:
        stats = wrapper.read_stats(model, config)
        note = both_stated(config, stats) if stats and wrapper.read_stats is DiffusersVAE.read_stats else ""
    if scaling_factor is not None:
        stats = replace(from_scaling(scaling_factor), mean=(stats or LatentStats()).mean)
    if stats is not None:
        require_usable(name, stats)
    elif hasattr(wrapper, "stats"):  # a family's record
        stats = wrapper.stats
    else:
        warnings.warn(warning_text("SK0208", f"the config of this {name} states no scaling"), stacklevel=2)
    vae = wrapper(model, diffusers_spec(model.eval(), wrapper), stats or LatentStats())
    vae.name = name
    if note:
        vae.notes = (*vae.notes, note)
        warnings.warn(warning_text("SK0129", f"the config of this {name}: {note}"), stacklevel=2)
    return vae


def stated_config(model: Any) -> dict[str, Any]:
    """A diffusers model's config without what the library filled in itself."""
    filled = set(model.config.get("_use_default_values", ()))
    return {key: value for key, value in model.config.items() if key not in filled and not key.startswith("_")}


def renormalised(vae: VAE, stats: LatentStats) -> VAE:
    """The same VAE, weights shared, with another normalisation; the VAE that was given stays as it is."""
    twin = copy.copy(vae)
    twin._buffers = dict(vae._buffers)  # a shallow copy shares the table
    twin.set_stats(stats)
    return twin
