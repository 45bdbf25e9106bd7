"""sanakit: swap the text encoder or the VAE of a Sana-family model, and know what happens."""

__version__ = "0.1.0"
