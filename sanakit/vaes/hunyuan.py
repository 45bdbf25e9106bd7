"""HunyuanImage 2.1's autoencoder: f32c64, z * scale."""

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.vaes.base import VAES
from sanakit.vaes.diffusers_vae import HubVAE


@VAES.register("hunyuanimage-2.1-vae", title="HunyuanImage 2.1 VAE, f32c64", licence="Tencent Hunyuan Community")
class HunyuanImage(HubVAE):
    hub = "hunyuanvideo-community/HunyuanImage-2.1-Diffusers:vae"
    model_class = "AutoencoderKLHunyuanImage"
    spec = LatentSpec(latent_channels=64, spatial_compression_ratio=32)
    stats = LatentStats.from_scaling(0.75289)
    published = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 64,
        "block_out_channels": (128, 256, 512, 512, 1024, 1024),
        "layers_per_block": 2,
        "spatial_compression_ratio": 32,
        "sample_size": 384,
        "scaling_factor": 0.75289,
    }
    small = {**published, "block_out_channels": (32, 32, 32, 32, 64, 128), "layers_per_block": 1}
