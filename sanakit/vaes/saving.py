"""A VAE written to a folder in its own format, with the normalisation in force: what `path:FOLDER` reads back."""

import json
from pathlib import Path

from sanakit.errors import SanakitError
from sanakit.vaes.base import VAE


def write_vae(vae: VAE, folder: Path) -> None:
    """Config and weights. Raises SK0604 for a VAE whose model has no format on disk."""
    if hasattr(vae, "save"):
        vae.save(folder)
    elif hasattr(vae.model, "save_pretrained"):
        vae.model.save_pretrained(folder)
        _state_stats(vae, folder / "config.json")
    else:
        raise SanakitError("SK0604", f"the VAE {vae.name} is a {type(vae.model).__name__}, which cannot be saved")
    if vae.kept is not None:
        vae.kept.write(folder)


def _state_stats(vae: VAE, path: Path) -> None:
    """The normalisation in force, overrides included, belongs into the exported config."""
    config, mean, std = json.loads(path.read_text(encoding="utf-8")), vae.stats.mean, vae.stats.std
    uniform = len(set(mean)) == len(set(std)) == 1
    per_channel = config.get("latents_mean") is not None  # it goes before a scaling factor when read back
    if uniform and not per_channel and "scaling_factor" in config and (mean[0] == 0 or "shift_factor" in config):
        config["scaling_factor"] = 1 / std[0]
        if "shift_factor" in config:
            config["shift_factor"] = mean[0]
    elif per_channel or not (uniform and (mean[0], std[0]) == (0, 1)):
        channels = vae.spec.latent_channels
        config["latents_mean"], config["latents_std"] = (
            list(mean * channels)[:channels],
            list(std * channels)[:channels],
        )
        if "scaling_factor" in config:  # one statement; diffusers' pipelines would apply both
            config["scaling_factor"] = 1.0
        config.pop("shift_factor", None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
