"""Autoencoders of LTX-Video and LTX-2 on one frame: f32c128, (z - mean) * scale / std.

The statistics lie beside the weights.
"""

from typing import Any, ClassVar

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.vaes.base import VAES
from sanakit.vaes.diffusers_vae import FrameVAE, HubVAE


class LTX(FrameVAE):
    @staticmethod
    def read_stats(model: Any, config: dict[str, Any]) -> LatentStats:
        std = model.latents_std / model.config.scaling_factor
        return LatentStats(mean=tuple(model.latents_mean.tolist()), std=tuple(std.tolist()))


@VAES.register("ltx-video-vae", title="LTX-Video VAE on one frame, f32c128", licence="see repository")
class LTXVideo(LTX, HubVAE):
    hub = "Lightricks/LTX-Video:vae"
    model_class = "AutoencoderKLLTXVideo"
    spec = LatentSpec(latent_channels=128, spatial_compression_ratio=32)
    stats = LatentStats()
    stats_with_weights = True
    published: ClassVar[dict[str, Any] | None] = {}  # the library's defaults
    small = {
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
    }


@VAES.register("ltx-2-vae", title="LTX-2 VAE on one frame, f32c128", licence="see repository")
class LTX2Video(LTX, HubVAE):
    hub = "Lightricks/LTX-2:vae"
    model_class = "AutoencoderKLLTX2Video"
    spec = LatentSpec(latent_channels=128, spatial_compression_ratio=32)
    stats = LatentStats()
    stats_with_weights = True
    published = {}  # the library's defaults
    small = {
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 16, 32),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1),
    }
