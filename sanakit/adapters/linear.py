"""Linear interface: the core's own patch embedding, head and caption projection in another shape.

They live inside the core as `patch_embed.proj`, `proj_out` and `caption_projection.linear_1`, so a result stays a
plain SanaTransformer2DModel that other people's tools load.
"""

from typing import Any

from diffusers import SanaTransformer2DModel

from sanakit.adapters.base import ADAPTERS, Adapter, attach, others, rebuild_core
from sanakit.contracts import LatentSpec, TextSpec


def fitted_patch(patch_size: int, base_ratio: int, ratio: int) -> int:
    """Patch of the core for latents of another spatial ratio: tokens stay as wide as the base's where the grid allows
    it."""
    return max(1, base_ratio * patch_size // ratio)


@ADAPTERS.register("linear-latents", title="patch embedding and head for other latents", embedded=True)
class LinearLatents(Adapter):
    kind = "latents"

    @classmethod
    def fit(
        cls, core: SanaTransformer2DModel, spec: LatentSpec, *, seed: int = 0, **geometry: Any
    ) -> SanaTransformer2DModel:
        """Keep the number of tokens where the candidate's grid is finer, by a larger patch; a coarser grid gives fewer.

        geometry: base_ratio, the spatial ratio of the base's VAE, and image_size, pixels of a side. Patch embedding and
        head are drawn anew even at equal shape: what they learnt belongs to the other VAE's channels.
        """
        patch = fitted_patch(core.config.patch_size, geometry["base_ratio"], spec.spatial_compression_ratio)
        more, kept = spec.latent_channels + 1, others(core, cls.kind)
        fresh = rebuild_core(core, seed=seed, adapters=kept, in_channels=more, out_channels=more)  # no shape survives
        fitted = rebuild_core(
            fresh,
            seed=seed,
            in_channels=spec.latent_channels,
            out_channels=spec.latent_channels,
            patch_size=patch,
            sample_size=geometry["image_size"] // spec.spatial_compression_ratio,
        )
        attach(fitted, cls.name, seed=seed)
        return fitted


@ADAPTERS.register("linear-caption", title="caption projection for another embedding width", embedded=True)
class LinearCaption(Adapter):
    kind = "tokens"

    @classmethod
    def fit(
        cls, core: SanaTransformer2DModel, spec: TextSpec, *, seed: int = 0, **geometry: Any
    ) -> SanaTransformer2DModel:
        """A new first caption layer; `linear_2` and `caption_norm` keep what they learnt.

        The layer is drawn anew even at equal width: its old columns belong to the other encoder's channels.
        """
        kept = others(core, cls.kind)
        fresh = rebuild_core(core, seed=seed, adapters=kept, caption_channels=spec.embed_dim + 1)
        fitted = rebuild_core(fresh, seed=seed, caption_channels=spec.embed_dim)
        attach(fitted, cls.name, seed=seed)
        return fitted
