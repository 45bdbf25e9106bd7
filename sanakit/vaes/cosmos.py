"""Cosmos tokenizer on one frame (arXiv 2501.03575): f8c16, (z - mean) / std per channel and frame.

diffusers has a class for the continuous video tokenizers alone; the image tokenizers (CI8x8, CI16x16) are published
as TorchScript, which is code, and are not loaded.
"""

from typing import Any, ClassVar

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.vaes.base import VAES
from sanakit.vaes.diffusers_vae import FrameVAE, HubVAE
from sanakit.vaes.normalisation import numbers

# fmt: off
FIRST_FRAME = LatentStats(  # of the library's defaults, which hold 16 frames for each of 16 channels
    mean=(0.11362758, 0.19125476, 0.01306714, -0.00197727, -0.02994183, 0.08019473, 0.16718403, 0.09564418,
          -0.04987567, -0.05364667, 0.16427967, -0.10612928, -0.16888915, -0.03415358, 0.02055675, 0.20312774),
    std=(0.56700271, 0.85245121, 0.84960359, 0.91877103, 0.77755755, 0.69903517, 0.8187142, 0.67583984,
         0.72450989, 0.90176988, 0.49853548, 0.61986589, 0.35586974, 0.98101336, 0.83202779, 0.44025335),
)
# fmt: on


class Cosmos(FrameVAE):
    @staticmethod
    def read_stats(model: Any, config: dict[str, Any]) -> LatentStats | None:
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return None
        mean, std = numbers("latents_mean", mean), numbers("latents_std", std)
        frames = max(len(mean) // model.config.latent_channels, 1)
        return LatentStats(mean=mean[::frames], std=std[::frames])


@VAES.register("cosmos-1.0-cv8x8x8", title="Cosmos tokenizer on one frame, f8c16", licence="NVIDIA Open Model")
class CosmosCV8(Cosmos, HubVAE):
    hub = "nvidia/Cosmos-1.0-Diffusion-7B-Text2World:vae"
    model_class = "AutoencoderKLCosmos"
    spec = LatentSpec(latent_channels=16, spatial_compression_ratio=8)
    stats = FIRST_FRAME
    published: ClassVar[dict[str, Any] | None] = {}  # the library's defaults
    small = {
        "encoder_block_out_channels": (8, 8, 8, 8),
        "decode_block_out_channels": (8, 8, 8, 8),
        "attention_resolutions": (8,),
        "resolution": 32,
        "num_layers": 1,
    }
