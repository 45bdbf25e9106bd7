"""Linear joints: the core's own patch embedding, head and caption projection in another shape.

They live inside the core as `patch_embed.proj`, `proj_out` and `caption_projection.linear_1`, so a result stays a
plain SanaTransformer2DModel that other people's tools load.
"""

from diffusers import SanaTransformer2DModel

from sanakit.adapters.base import ADAPTERS, rebuild_core
from sanakit.contracts import LatentSpec, TextSpec


@ADAPTERS.register("linear-latents", title="patch embedding and head for other latents", embedded=True)
def linear_latents(
    core: SanaTransformer2DModel, spec: LatentSpec, *, base_ratio: int, image_size: int, seed: int = 0
) -> SanaTransformer2DModel:
    """Keep the number of tokens where the candidate's grid is finer, by a larger patch; a coarser grid gives fewer.

    base_ratio: spatial ratio of the base's VAE. image_size: pixels of a side. Patch embedding and head are drawn anew
    even at equal shape: what they learnt belongs to the other VAE's channels.
    """
    patch = max(1, base_ratio * core.config.patch_size // spec.spatial_compression_ratio)
    more = spec.latent_channels + 1
    return rebuild_core(
        rebuild_core(core, seed=seed, in_channels=more, out_channels=more),  # no shape survives: fresh joints
        seed=seed,
        in_channels=spec.latent_channels,
        out_channels=spec.latent_channels,
        patch_size=patch,
        sample_size=image_size // spec.spatial_compression_ratio,
    )


@ADAPTERS.register("linear-caption", title="caption projection for another embedding width", embedded=True)
def linear_caption(core: SanaTransformer2DModel, spec: TextSpec, *, seed: int = 0) -> SanaTransformer2DModel:
    """A new first caption layer; `linear_2` and `caption_norm` keep what they learnt.

    The layer is drawn anew even at equal width: its old columns belong to the other encoder's channels.
    """
    fresh = rebuild_core(core, seed=seed, caption_channels=spec.embed_dim + 1)  # forces fresh columns
    return rebuild_core(fresh, seed=seed, caption_channels=spec.embed_dim)
