"""FLUX.2's autoencoder: f8c32 latents, 2 x 2 of them stacked to f16c128, normalised by a batch norm's statistics."""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.vaes.base import VAES
from sanakit.vaes.diffusers_vae import DiffusersVAE, HubVAE
from sanakit.vaes.normalisation import per_channel


class Flux2(DiffusersVAE):
    """Raw latents are the stacked ones, in the order of `pixel_unshuffle`, as the FLUX.2 pipeline packs them."""

    @staticmethod
    def to_raw(latents: Tensor) -> Tensor:
        return F.pixel_unshuffle(latents, 2)

    @staticmethod
    def run_decoder(model: Any, raw_latents: Tensor) -> Tensor:
        return DiffusersVAE.run_decoder(model, F.pixel_shuffle(raw_latents, 2))

    @staticmethod
    def read_stats(model: Any, config: dict[str, Any]) -> LatentStats:
        if (stated := per_channel(config)) is not None:
            return stated
        std = torch.sqrt(model.bn.running_var + model.config.batch_norm_eps)
        return LatentStats(mean=tuple(model.bn.running_mean.tolist()), std=tuple(std.tolist()))

    def write_stats(self, config: dict[str, Any]) -> None:
        for key in ("latents_mean", "latents_std"):  # diffusers' pipelines read the batch norm alone
            config.pop(key, None)

    def stats_buffers(self) -> dict[str, Tensor]:
        variance = self.latents_std.flatten().cpu().double().square() - self.model.config.batch_norm_eps
        return {"bn.running_mean": self.latents_mean.flatten(), "bn.running_var": variance.float()}


@VAES.register("flux.2-vae", title="FLUX.2 VAE, f16c128 after 2 x 2 stacking", licence="Apache-2.0")
class Flux2Klein(Flux2, HubVAE):
    hub = "black-forest-labs/FLUX.2-klein-4B:vae"
    revision = "e7b7dc27f91deacad38e78976d1f2b499d76a294"
    model_class = "AutoencoderKLFlux2"
    spec = LatentSpec(latent_channels=128, spatial_compression_ratio=16)
    stats = LatentStats()
    stats_with_weights = True
    published: ClassVar[dict[str, Any] | None] = {}  # the library's defaults
    small = {"block_out_channels": (4, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}

    @classmethod
    def tiny(cls) -> Self:
        model = cls.build(cls.small)
        return cls(model, cls.spec, cls.read_stats(model, {}))
