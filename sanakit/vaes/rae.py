"""Representation autoencoders (RAE, arXiv 2510.11690): a frozen vision encoder and a trained ViT decoder.

Images have one size, which the decoder's position embedding fixes. The model normalises its latents itself, with
statistics per position, so that sanakit's own normalisation is the identity. The SigLIP2 members do not build with
diffusers 0.42 on transformers 5.
"""

from typing import Any

from torch import Tensor

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.vaes.base import VAES
from sanakit.vaes.diffusers_vae import DiffusersVAE, HubVAE
from sanakit.vaes.normalisation import own_stats, state_own


class RAE(DiffusersVAE):
    @property
    def fixed_image_size(self) -> int:
        return self.model.decoder_image_size

    @staticmethod
    def to_model(images: Tensor) -> Tensor:
        return images / 2 + 0.5  # RAE takes and gives [0, 1]

    @staticmethod
    def run_decoder(model: Any, raw_latents: Tensor) -> Tensor:
        return model.decode(raw_latents).sample * 2 - 1

    @staticmethod
    def read_stats(model: Any, config: dict[str, Any]) -> LatentStats:
        """latents_mean and scaling_factor of the config are applied by the model, and not stated again."""
        return own_stats(config)

    def write_stats(self, config: dict[str, Any]) -> None:
        state_own(config, self.stats)


def config(hidden_size: int) -> dict[str, Any]:
    """A DINOv2 encoder with registers on 224 px, and the ViT-XL decoder of every published member to 256 px."""
    return {
        "encoder_type": "dinov2",
        "encoder_hidden_size": hidden_size,
        "decoder_hidden_size": 1152,
        "decoder_num_hidden_layers": 28,
        "decoder_num_attention_heads": 16,
        "decoder_intermediate_size": 4096,
    }


SMALL = {
    "encoder_num_hidden_layers": 1,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}


class RAEHub(RAE, HubVAE):
    model_class = "AutoencoderRAE"
    stats = LatentStats()


@VAES.register("rae-dinov2-base", title="RAE on DINOv2-base, f16c768, 256 px", licence="see repository")
class RAEDinoBase(RAEHub):
    hub = "nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08"
    spec = LatentSpec(latent_channels=768, spatial_compression_ratio=16)
    published = config(768)
    small = {**published, **SMALL}


@VAES.register("rae-dinov2-small", title="RAE on DINOv2-small, f16c384, 256 px", licence="see repository")
class RAEDinoSmall(RAEHub):
    hub = "nyu-visionx/RAE-dinov2-wReg-small-ViTXL-n08"
    spec = LatentSpec(latent_channels=384, spatial_compression_ratio=16)
    published = config(384)
    small = {**published, **SMALL}
