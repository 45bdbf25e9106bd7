"""Deep-compression autoencoders (DC-AE, arXiv 2410.10733), the family of Sana: f32 to f128, z * scale.

DC-AE 1.5 (arXiv 2508.00413) has no weights in diffusers' form;
a folder of class AutoencoderDC loads by `path:` or `hub:`.
"""

from typing import Any, ClassVar

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.registry import row
from sanakit.vaes.base import VAES
from sanakit.vaes.diffusers_vae import HubVAE

SANA = {
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "downsample_block_type": "Conv",
    "upsample_block_type": "interpolate",
}


def config(latent_channels: int, channels: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    """Three residual levels, then EfficientViT levels; the ratio is two to the number of levels less one."""
    levels = len(channels)
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * (levels - 3)
    return {
        "latent_channels": latent_channels,
        "encoder_block_types": blocks,
        "decoder_block_types": blocks,
        "encoder_block_out_channels": channels,
        "decoder_block_out_channels": channels,
        "encoder_layers_per_block": (0, 4, 8) + (2,) * (levels - 3),
        "decoder_layers_per_block": (0, 5, 10) + (2,) * (levels - 3),
        "encoder_qkv_multiscales": ((),) * levels,
        "decoder_qkv_multiscales": ((),) * levels,
        "decoder_norm_types": ("batch_norm",) * 3 + ("rms_norm",) * (levels - 3),
        "decoder_act_fns": ("relu",) * 3 + ("silu",) * (levels - 3),
        **changes,
    }


def small(latent_channels: int, *tail: int, levels: int, **changes: Any) -> dict[str, Any]:
    layers = {f"{side}_layers_per_block": (0,) + (1,) * (levels - 1) for side in ("encoder", "decoder")}
    channels = (8,) * (levels - len(tail)) + tail
    return config(latent_channels, channels, attention_head_dim=8, **{**changes, **layers})


class DCAE(HubVAE):
    model_class = "AutoencoderDC"


class F32C32(DCAE):
    spec = LatentSpec(latent_channels=32, spatial_compression_ratio=32)
    published: ClassVar[dict[str, Any] | None] = config(32, (128, 256, 512, 512, 1024, 1024))
    small = small(32, 32, levels=6)


class Sana(F32C32):
    stats = LatentStats.from_scaling(0.41407)
    published: ClassVar[dict[str, Any] | None] = config(
        32, (128, 256, 512, 512, 1024, 1024), **SANA, decoder_norm_types="rms_norm", decoder_act_fns="silu"
    )
    small = small(32, 32, levels=6, **SANA, decoder_norm_types="rms_norm", decoder_act_fns="silu")


class F64C128(DCAE):
    spec = LatentSpec(latent_channels=128, spatial_compression_ratio=64)
    published = config(128, (128, 256, 512, 512, 1024, 1024, 2048))
    small = small(128, 32, 128, levels=7)


class F128C512(DCAE):
    spec = LatentSpec(latent_channels=512, spatial_compression_ratio=128)
    published = config(512, (128, 256, 512, 512, 1024, 1024, 2048, 2048))
    small = small(512, 32, 128, 512, levels=8)


VAES.table(
    globals(),
    {
        "Sana10": row(
            Sana,
            "dc-ae-f32c32-sana-1.0",
            title="DC-AE of Sana, f32c32",
            licence="see repository",
            hub="mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers",
            revision="8589aeeb0a1ab152a305081d83d3794e089c0326",
        ),
        "Sana11": row(
            Sana,
            "dc-ae-f32c32-sana-1.1",
            title="DC-AE of Sana 1.5 and Sprint, f32c32",
            licence="MIT",
            hub="mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers",
        ),
        # the same latents as dc-ae-f32c32-sana-1.0, decoded 1.8 times as fast (DC-Gen, projects/DC-AE-Lite.md)
        "Lite": row(
            Sana,
            "dc-ae-lite-f32c32",
            title="DC-AE of Sana 1.0 with a smaller decoder, f32c32",
            licence="see repository",
            hub="dc-ai/dc-ae-lite-f32c32-diffusers",
            published=None,  # its decoder's widths are not documented
        ),
        "F32C32In": row(
            F32C32,
            "dc-ae-f32c32-in-1.0",
            title="DC-AE trained on ImageNet, f32c32",
            licence="see repository",
            hub="mit-han-lab/dc-ae-f32c32-in-1.0-diffusers",
            stats=LatentStats.from_scaling(0.3189),
        ),
        "F32C32Mix": row(
            F32C32,
            "dc-ae-f32c32-mix-1.0",
            title="DC-AE trained on mixed images, f32c32",
            licence="see repository",
            hub="mit-han-lab/dc-ae-f32c32-mix-1.0-diffusers",
            stats=LatentStats.from_scaling(0.4552),
        ),
        "F64C128In": row(
            F64C128,
            "dc-ae-f64c128-in-1.0",
            title="DC-AE trained on ImageNet, f64c128",
            licence="see repository",
            hub="mit-han-lab/dc-ae-f64c128-in-1.0-diffusers",
            stats=LatentStats.from_scaling(0.2889),
        ),
        "F64C128Mix": row(
            F64C128,
            "dc-ae-f64c128-mix-1.0",
            title="DC-AE trained on mixed images, f64c128",
            licence="see repository",
            hub="mit-han-lab/dc-ae-f64c128-mix-1.0-diffusers",
            revision="087a379ce3816a2b9c815a78348d1f93a4357dd9",
            stats=LatentStats.from_scaling(0.4538),
        ),
        "F128C512In": row(
            F128C512,
            "dc-ae-f128c512-in-1.0",
            title="DC-AE trained on ImageNet, f128c512",
            licence="see repository",
            hub="mit-han-lab/dc-ae-f128c512-in-1.0-diffusers",
            revision="91f26ad311d492f944fc60f88db3887926547c42",
            stats=LatentStats.from_scaling(0.4883),
        ),
        "F128C512Mix": row(
            F128C512,
            "dc-ae-f128c512-mix-1.0",
            title="DC-AE trained on mixed images, f128c512",
            licence="see repository",
            hub="mit-han-lab/dc-ae-f128c512-mix-1.0-diffusers",
            stats=LatentStats.from_scaling(0.3620),
        ),
    },
)
