"""AutoencoderKL of Stable Diffusion and its successors (arXiv 2112.10752): f8, 4 or 16 channels,
(z - shift) * scale."""

from typing import Any, ClassVar

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.registry import row
from sanakit.vaes.base import VAES
from sanakit.vaes.diffusers_vae import HubVAE


def config(latent_channels: int, width: int = 128, **changes: Any) -> dict[str, Any]:
    """Four levels of widths 1, 2, 4, 4; every published member of the family has them."""
    return {
        "block_out_channels": (width, 2 * width, 4 * width, 4 * width),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": latent_channels,
        **changes,
    }


SMALL = {"width": 4, "layers_per_block": 1, "norm_num_groups": 4}
NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}


class KLF8C4(HubVAE):
    model_class = "AutoencoderKL"
    spec = LatentSpec(latent_channels=4, spatial_compression_ratio=8)
    published = config(4)
    small = config(4, **SMALL)


class KLF8C16(HubVAE):
    model_class = "AutoencoderKL"
    spec = LatentSpec(latent_channels=16, spatial_compression_ratio=8)
    published: ClassVar[dict[str, Any] | None] = config(16, **NO_QUANT)
    small = config(16, **SMALL, **NO_QUANT)


class EndToEnd(KLF8C16):
    """Tuned with a diffusion model by REPA-E (arXiv 2504.10483), which changes the statistics: config.json tells."""

    stats = LatentStats()
    stats_with_weights = True
    unstated = True
    published = None


VAES.table(
    globals(),
    {
        "SDFTMSE": row(
            KLF8C4,
            "sd-vae-ft-mse",
            title="Stable Diffusion VAE, fine-tuned for squared error, f8c4",
            licence="MIT",
            hub="stabilityai/sd-vae-ft-mse",
            stats=LatentStats.from_scaling(0.18215),
        ),
        "SDFTEMA": row(
            KLF8C4,
            "sd-vae-ft-ema",
            title="Stable Diffusion VAE, fine-tuned EMA, f8c4",
            licence="MIT",
            hub="stabilityai/sd-vae-ft-ema",
            stats=LatentStats.from_scaling(0.18215),
        ),
        "SDXL": row(
            KLF8C4,
            "sdxl-vae",
            title="SDXL VAE, f8c4; overflows in half precision",
            licence="MIT",
            hub="stabilityai/sdxl-vae",
            stats=LatentStats.from_scaling(0.13025),
        ),
        "SDXLFP16Fix": row(
            KLF8C4,
            "sdxl-vae-fp16-fix",
            title="SDXL VAE that stays finite in half precision, f8c4",
            licence="MIT",
            hub="madebyollin/sdxl-vae-fp16-fix",
            stats=LatentStats.from_scaling(0.13025),
        ),
        "SD3": row(
            KLF8C16,
            "sd3-vae",
            title="Stable Diffusion 3 VAE, f8c16; gated",
            licence="Stability AI Community",
            hub="stabilityai/stable-diffusion-3-medium-diffusers:vae",
            stats=LatentStats.from_scaling(1.5305, 0.0609),
        ),
        "Flux1": row(
            KLF8C16,
            "flux.1-vae",
            title="FLUX.1 VAE, f8c16",
            licence="Apache-2.0",
            hub="black-forest-labs/FLUX.1-schnell:vae",
            revision="741f7c3ce8b383c54771c7003378a50191e9efe9",
            stats=LatentStats.from_scaling(0.3611, 0.1159),
        ),
        "E2EFlux": row(
            EndToEnd,
            "e2e-flux-vae",
            title="FLUX.1 VAE tuned end to end by REPA-E, f8c16",
            licence="see repository",
            hub="REPA-E/e2e-flux-vae",
        ),
        "E2ESD35": row(
            EndToEnd,
            "e2e-sd3.5-vae",
            title="SD 3.5 VAE tuned end to end by REPA-E, f8c16",
            licence="see repository",
            hub="REPA-E/e2e-sd3.5-vae",
        ),
    },
)
