"""VAEs trained on the embedded images by experiments/assets/train_vae.py; each is a plain diffusers class."""

from pathlib import Path
from typing import Self

import diffusers
from torch import nn

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.vaes.base import VAES
from sanakit.vaes.diffusers_vae import DiffusersVAE, diffusers_spec

ASSETS = Path(__file__).parent.parent / "assets" / "vaes"


class EmbeddedVAE(DiffusersVAE):
    @classmethod
    def load(cls) -> Self:
        return cls.from_folder(ASSETS / cls.name)


@VAES.register("dc-f16c32", title="deep-compression autoencoder, f16c32", licence="CC BY-SA 4.0", embedded=True)
class DCF16C32(EmbeddedVAE):
    card_path = ASSETS / "dc-f16c32" / "card.json"

    @classmethod
    def tiny(cls) -> Self:
        return cls(*_tiny_dc(levels=5, latent_channels=32))


@VAES.register("dc-f16c16", title="deep-compression autoencoder, f16c16", licence="CC BY-SA 4.0", embedded=True)
class DCF16C16(EmbeddedVAE):
    card_path = ASSETS / "dc-f16c16" / "card.json"

    @classmethod
    def tiny(cls) -> Self:
        return cls(*_tiny_dc(levels=5, latent_channels=16))


@VAES.register("kl-f8c4", title="AutoencoderKL as in Stable Diffusion, f8c4", licence="CC BY-SA 4.0", embedded=True)
class KLF8C4(EmbeddedVAE):
    card_path = ASSETS / "kl-f8c4" / "card.json"

    @classmethod
    def tiny(cls) -> Self:
        model = diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
        )
        return cls(model, diffusers_spec(model), LatentStats.from_scaling(0.18215))


def _tiny_dc(levels: int, latent_channels: int) -> tuple[nn.Module, LatentSpec, LatentStats]:
    channels = (8, *(latent_channels,) * (levels - 1))
    model = diffusers.AutoencoderDC(
        latent_channels=latent_channels,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=(0,) + (1,) * (levels - 1),
        decoder_layers_per_block=(0,) + (1,) * (levels - 1),
        encoder_qkv_multiscales=((),) * levels,
        decoder_qkv_multiscales=((),) * levels,
    )
    return model, diffusers_spec(model), LatentStats()
