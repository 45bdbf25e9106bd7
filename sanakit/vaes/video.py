"""Further video autoencoders on one frame: z * scale.

The library's defaults are the published configurations. Left out: Allegro, which encodes in tiles of several
frames only; VidTok, whose convolutions in time are longer than one frame; and Mochi, whose Fourier features of pixels
are lost in bf16, the precision of frozen parts on accelerators.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.vaes.base import VAES
from sanakit.vaes.diffusers_vae import FrameVAE, HubVAE

F8C16 = LatentSpec(latent_channels=16, spatial_compression_ratio=8)


class OneByOne(FrameVAE):
    """A model whose attention mask serves one video at a time (diffusers 0.42.1): images go through it singly."""

    @classmethod
    def run_encoder(cls, model: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
        pairs = [super(OneByOne, cls).run_encoder(model, image) for image in images.split(1)]
        stds = [std for _, std in pairs if std is not None]
        return torch.cat([raw for raw, _ in pairs]), torch.cat(stds) if len(stds) == len(pairs) else None

    @staticmethod
    def run_decoder(model: Any, raw_latents: Tensor) -> Tensor:
        return torch.cat([FrameVAE.run_decoder(model, latent) for latent in raw_latents.split(1)])


class OpaqueRGBA(FrameVAE):
    """A model of images with an alpha channel: images are opaque, and the alpha of what is decoded is left out."""

    @staticmethod
    def to_model(images: Tensor) -> Tensor:
        return torch.cat([images, torch.ones_like(images[:, :1])], 1)[:, :, None]

    @staticmethod
    def run_decoder(model: Any, raw_latents: Tensor) -> Tensor:
        return FrameVAE.run_decoder(model, raw_latents)[:, :3]


class Video(FrameVAE, HubVAE):
    published: ClassVar[dict[str, Any] | None] = {}  # the library's defaults


@VAES.register("hunyuanvideo-vae", title="HunyuanVideo VAE on one frame, f8c16", licence="Tencent Hunyuan Community")
class HunyuanVideo(Video):
    hub = "hunyuanvideo-community/HunyuanVideo:vae"
    model_class = "AutoencoderKLHunyuanVideo"
    spec = F8C16
    stats = LatentStats.from_scaling(0.476986)
    small = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}


@VAES.register(
    "hunyuanvideo-1.5-vae", title="HunyuanVideo 1.5 VAE on one frame, f16c32", licence="Tencent Hunyuan Community"
)
class HunyuanVideo15(OneByOne, HubVAE):
    hub = "hunyuanvideo-community/HunyuanVideo-1.5-480p_t2v:vae"
    model_class = "AutoencoderKLHunyuanVideo15"
    spec = LatentSpec(latent_channels=32, spatial_compression_ratio=16)
    stats = LatentStats.from_scaling(1.03682)
    published: ClassVar[dict[str, Any] | None] = {}
    small = {"block_out_channels": (32, 32, 32, 64, 64), "layers_per_block": 1}


@VAES.register("cogvideox-2b-vae", title="CogVideoX-2b VAE on one frame, f8c16", licence="Apache-2.0")
class CogVideoX(Video):
    hub = "THUDM/CogVideoX-2b:vae"
    model_class = "AutoencoderKLCogVideoX"
    spec = F8C16
    stats = LatentStats.from_scaling(1.15258426)
    small = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}


@VAES.register(
    "kvae-2d-1.0", title="KVAE 2D of Kandinsky, f8c16; its config states no scaling", licence="see repository"
)
class KVAE(HubVAE):
    hub = "kandinskylab/KVAE-2D-1.0:diffusers"
    model_class = "AutoencoderKLKVAE"
    spec = F8C16
    stats = LatentStats()
    unstated = True
    published: ClassVar[dict[str, Any] | None] = {}
    small = {"channels": 32, "num_enc_blocks": 1, "num_dec_blocks": 1, "ch_mult": (1, 1, 1, 1)}


@VAES.register(
    "kvae-3d-1.0",
    title="KVAE 3D of Kandinsky on one frame, f8c16; its config states no scaling",
    licence="see repository",
)
class KVAEVideo(Video):
    hub = "kandinskylab/KVAE-3D-1.0:diffusers"
    model_class = "AutoencoderKLKVAEVideo"
    spec = F8C16
    stats = LatentStats()
    unstated = True
    small = {"ch": 32, "num_res_blocks": 1, "ch_mult": (1, 1, 1, 1)}


@VAES.register("qwen-image-2.1-vae", title="Qwen-Image 2.1 VAE on one opaque frame, f16c64", licence="see repository")
class QwenImage21(OpaqueRGBA, HubVAE):
    hub = "Qwen/Qwen-Image-2.1:vae"
    model_class = "AutoencoderKLQwenImage21"
    spec = LatentSpec(latent_channels=64, spatial_compression_ratio=16)
    stats = LatentStats()
    stats_with_weights = True
    unstated = True
    published: ClassVar[dict[str, Any] | None] = {}
    small = {"base_dim": 4, "decoder_base_dim": 4, "num_res_blocks": 1}
