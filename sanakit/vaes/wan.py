"""Causal video autoencoders of Wan and Qwen-Image on one frame: (z - mean) / std per channel."""

from typing import Any, ClassVar

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.vaes.base import VAES
from sanakit.vaes.diffusers_vae import FrameVAE, HubVAE

# fmt: off
WAN_21 = LatentStats(  # the library's defaults for both classes
    mean=(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
          -0.1922, -0.9497, 0.2503, -0.2921),
    std=(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
         1.1253, 2.8251, 1.9160),
)
WAN_22 = LatentStats(
    mean=(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.157,
          -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055,
          -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839,
          -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    std=(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
         0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
         0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06,
         0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)
# fmt: on


class F8C16(FrameVAE, HubVAE):
    spec = LatentSpec(latent_channels=16, spatial_compression_ratio=8)
    stats = WAN_21
    published: ClassVar[dict[str, Any] | None] = {}  # the library's defaults
    small = {"base_dim": 4, "num_res_blocks": 1}


@VAES.register("wan-2.1-vae", title="Wan 2.1 VAE on one frame, f8c16", licence="Apache-2.0")
class Wan21(F8C16):
    hub = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers:vae"
    model_class = "AutoencoderKLWan"


@VAES.register("qwen-image-vae", title="Qwen-Image VAE on one frame, f8c16", licence="Apache-2.0")
class QwenImage(F8C16):
    hub = "Qwen/Qwen-Image:vae"
    model_class = "AutoencoderKLQwenImage"


@VAES.register("wan-2.2-vae", title="Wan 2.2 VAE on one frame, f16c48", licence="Apache-2.0")
class Wan22(FrameVAE, HubVAE):
    hub = "Wan-AI/Wan2.2-TI2V-5B-Diffusers:vae"
    model_class = "AutoencoderKLWan"
    spec = LatentSpec(latent_channels=48, spatial_compression_ratio=16)
    stats = WAN_22
    published = {
        "base_dim": 160,
        "decoder_base_dim": 256,
        "z_dim": 48,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": WAN_22.mean,
        "latents_std": WAN_22.std,
    }
    small = {**published, "base_dim": 4, "decoder_base_dim": 4, "num_res_blocks": 1}


@VAES.register(
    "e2e-qwenimage-vae",
    title="Qwen-Image VAE tuned end to end by REPA-E, on one frame, f8c16",
    licence="see repository",
)
class E2EQwenImage(F8C16):
    """Its statistics are no longer Qwen-Image's: config.json tells."""

    hub = "REPA-E/e2e-qwenimage-vae"
    model_class = "AutoencoderKLQwenImage"
    stats = LatentStats()
    stats_with_weights = True
    unstated = True
