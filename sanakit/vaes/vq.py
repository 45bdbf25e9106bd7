"""MoVQ autoencoders of Kandinsky. Kandinsky diffuses the latents before quantisation and decodes them unquantised."""

from typing import Any

from torch import Tensor

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.vaes.base import VAES
from sanakit.vaes.diffusers_vae import HubVAE
from sanakit.vaes.normalisation import own_stats, state_own


def config(*channels: int, codes: int = 16384, **changes: Any) -> dict[str, Any]:
    """Attention on the coarsest level, normalisation modulated by the latents."""
    return {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 2,
        "latent_channels": 4,
        "vq_embed_dim": 4,
        "num_vq_embeddings": codes,
        "norm_type": "spatial",
        **changes,
    }


class MoVQ(HubVAE):
    model_class = "VQModel"
    variant = "MoVQ"  # other models of the class decode after quantisation
    spec = LatentSpec(latent_channels=4, spatial_compression_ratio=8)
    stats = LatentStats()
    small = config(32, 32, 32, 32, codes=32, layers_per_block=1)

    @staticmethod
    def run_decoder(model: Any, raw_latents: Tensor) -> Tensor:
        return model.decode(raw_latents, force_not_quantize=True).sample

    @staticmethod
    def read_stats(model: Any, config: dict[str, Any]) -> LatentStats:
        """The config states 0.18215, but the text-to-image pipelines decode without it."""
        return own_stats(config)

    def write_stats(self, config: dict[str, Any]) -> None:
        state_own(config, self.stats)


@VAES.register("movq-kandinsky-2.2", title="MoVQ of Kandinsky 2.2, f8c4", licence="Apache-2.0")
class Kandinsky22(MoVQ):
    hub = "kandinsky-community/kandinsky-2-2-decoder:movq"
    published = config(128, 256, 256, 512)


@VAES.register("movq-kandinsky-3", title="MoVQ of Kandinsky 3, f8c4", licence="Apache-2.0")
class Kandinsky3(MoVQ):
    hub = "kandinsky-community/kandinsky-3:movq"
    published = config(256, 512, 512, 1024)
