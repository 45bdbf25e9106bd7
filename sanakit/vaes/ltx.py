"""Autoencoders of LTX-Video and LTX-2 on one frame: f32c128, (z - mean) * scale / std.

The statistics lie beside the weights.
"""

from typing import Any, ClassVar

from torch import Tensor

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.vaes.base import VAES
from sanakit.vaes.diffusers_vae import FrameVAE, HubVAE
from sanakit.vaes.normalisation import per_channel


class LTX(FrameVAE):
    @staticmethod
    def read_stats(model: Any, config: dict[str, Any]) -> LatentStats:
        """Those of the buffers. A config that states them goes before: it was written to override them."""
        if (stated := per_channel(config)) is not None:
            return stated
        buffers = dict(model.named_buffers())
        std = buffers["latents_std"] / model.config.scaling_factor
        return LatentStats(mean=tuple(buffers["latents_mean"].tolist()), std=tuple(std.tolist()))

    def write_stats(self, config: dict[str, Any]) -> None:
        for key in ("latents_mean", "latents_std"):  # in the config they would hide the buffers
            config.pop(key, None)

    def stats_buffers(self) -> dict[str, Tensor]:
        scale = self.model.config.scaling_factor
        return {"latents_mean": self.latents_mean.flatten(), "latents_std": self.latents_std.flatten() * scale}

    @staticmethod
    def run_decoder(model: Any, raw_latents: Tensor) -> Tensor:
        """A model with a timestep denoises its latents; at 0, as the pipeline has it, they are taken as clean."""
        time = raw_latents.new_zeros(len(raw_latents)) if model.config.timestep_conditioning else None
        return model.decode(raw_latents[:, :, None], time).sample[:, :, 0]


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
