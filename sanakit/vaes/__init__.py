"""Interchangeable VAEs."""

from sanakit.vaes.base import VAE, VAES
from sanakit.vaes.diffusers_vae import DiffusersVAE

__all__ = ["VAE", "VAES", "DiffusersVAE"]
