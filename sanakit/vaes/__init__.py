"""Interchangeable VAEs."""

from sanakit.vaes.base import VAE, VAES, DiffusersVAE, load_vae

__all__ = ["VAE", "VAES", "DiffusersVAE", "load_vae"]
