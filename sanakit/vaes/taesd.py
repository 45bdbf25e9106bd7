"""Tiny autoencoders by Ollin Boer Bohan: distilled to the *scaled* latents of their teachers, so the scale is 1."""

from typing import Any

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.registry import row
from sanakit.vaes.base import VAES
from sanakit.vaes.diffusers_vae import HubVAE


def config(latent_channels: int, width: int = 64, blocks: int = 3) -> dict[str, Any]:
    return {
        "latent_channels": latent_channels,
        "encoder_block_out_channels": (width,) * 4,
        "decoder_block_out_channels": (width,) * 4,
        "num_encoder_blocks": (1, blocks, blocks, blocks),
        "num_decoder_blocks": (blocks, blocks, blocks, 1),
    }


class TinyF8C4(HubVAE):
    model_class = "AutoencoderTiny"
    spec = LatentSpec(latent_channels=4, spatial_compression_ratio=8)
    stats = LatentStats()
    published = config(4)
    small = config(4, width=8, blocks=1)


class TinyF8C16(TinyF8C4):
    spec = LatentSpec(latent_channels=16, spatial_compression_ratio=8)
    published = config(16)
    small = config(16, width=8, blocks=1)


VAES.table(
    globals(),
    {
        "TAESD": row(
            TinyF8C4,
            "taesd",
            title="Tiny autoencoder for Stable Diffusion latents, f8c4",
            licence="MIT",
            hub="madebyollin/taesd",
        ),
        "TAESDXL": row(
            TinyF8C4,
            "taesdxl",
            title="Tiny autoencoder for SDXL latents, f8c4",
            licence="MIT",
            hub="madebyollin/taesdxl",
        ),
        "TAESD3": row(
            TinyF8C16,
            "taesd3",
            title="Tiny autoencoder for Stable Diffusion 3 latents, f8c16",
            licence="MIT",
            hub="madebyollin/taesd3",
        ),
        "TAEF1": row(
            TinyF8C16,
            "taef1",
            title="Tiny autoencoder for FLUX.1 latents, f8c16",
            licence="MIT",
            hub="madebyollin/taef1",
        ),
    },
)
