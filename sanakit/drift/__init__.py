"""Drift statistics, one pure function a file, on image-level features (pixels of one image are not samples)."""

from sanakit.drift.base import DRIFT, latent_features

__all__ = ["DRIFT", "latent_features"]
