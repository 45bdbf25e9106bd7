"""A swap without weights: both sides' parts, the swapped core, and what its steps and passes need."""

from dataclasses import dataclass
from typing import Any

from diffusers import SanaTransformer2DModel

from sanakit.config import Config
from sanakit.needs.fit import Assumed
from sanakit.needs.outline import BaseOutline, TextOutline, VAEOutline, outline_base, outline_encoder, outline_vae
from sanakit.strategies.base import Strategy
from sanakit.swap.early import decide_image_size
from sanakit.training.estimate import Estimate, estimate, fake_core
from sanakit.training.loop import TrainOptions
from sanakit.training.step_trace import forward_bytes


@dataclass(kw_only=True)
class Outlines:
    """What a dry run knows of a swap: both sides' parts without weights, and the swapped core's geometry."""

    config: Config
    assumed: Assumed
    world_size: int
    base: BaseOutline
    vaes: dict[str, VAEOutline]  # base, and candidate where it is one
    encoders: dict[str, TextOutline]

    @property
    def vae(self) -> VAEOutline:
        return self.vaes.get("candidate", self.vaes["base"])

    @property
    def encoder(self) -> TextOutline:
        return self.encoders.get("candidate", self.encoders["base"])

    @property
    def size(self) -> int:
        return self.config.data.size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.vae.spec.shape(self.size, self.size)

    def core(self, adapter: str | None = None) -> Any:
        """A fresh core of the swap, and its mode."""
        return fake_core(
            self.base.core,
            latents=self.vae.spec if "candidate" in self.vaes else None,
            text=self.encoder.spec if "candidate" in self.encoders else None,
            adapters=self.base.adapters,
            adapter=adapter or self.config.adapter.name,
            base_ratio=self.vaes["base"].spec.spatial_compression_ratio,
            image_size=self.size,
        )

    def step(self, strategy: type[Strategy], options: TrainOptions) -> Estimate:
        core, mode = self.core(strategy.adapter or None)
        return estimate(
            core,
            mode,
            strategy,
            options,
            latent_shape=self.latent_shape,
            caption_length=self.encoder.spec.max_tokens,
            world_size=self.world_size,
            fused_attention=self.assumed.fused_attention,
        )

    def forward(self, core: SanaTransformer2DModel, mode: Any, images: int, precision: str) -> tuple[int, int]:
        return forward_bytes(
            core,
            mode,
            images,
            self.latent_shape if core.config.in_channels == self.latent_shape[0] else self._base_shape,
            self.encoder.spec.max_tokens,
            precision=precision,
            fused_attention=self.assumed.fused_attention,
        )

    @property
    def _base_shape(self) -> tuple[int, int, int]:
        return self.vaes["base"].spec.shape(self.size, self.size)


def outline_swap(config: Config, assumed: Assumed, world_size: int) -> Outlines:
    """Raises SK0104 for another image size than the base's, or what loading a configuration raises."""
    base = outline_base(config.base)
    config = decide_image_size(config, base.image_size)
    vaes, encoders = {"base": outline_vae(base.vae)}, {"base": outline_encoder(base.text_encoder)}
    if config.vae.name:
        vaes["candidate"] = outline_vae(config.vae.name)
    if config.text_encoder.name:
        encoders["candidate"] = outline_encoder(config.text_encoder.name)
    return Outlines(config=config, assumed=assumed, world_size=world_size, base=base, vaes=vaes, encoders=encoders)


def core_bytes(core: SanaTransformer2DModel) -> int:
    return sum(p.numel() * p.element_size() for p in core.parameters())
