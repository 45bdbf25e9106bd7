"""Components and core put together; every check that spans two of them lives here."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn

from sanakit.errors import SanakitError
from sanakit.flow import TIMESTEP_SCALE, flow_shift_for
from sanakit.placement import Placement, host
from sanakit.text_encoders import PromptEmbeds, TextEncoder
from sanakit.vaes import VAE


@dataclass(kw_only=True, repr=False)
class LatentDiffusion:
    """A system that can train and sample. image_size: pixels of a side. flow_shift: of training and sampling.

    placement: where its parts compute. part: "base" for a frozen core, which computes in the placement's precision for
    it. name: of the base that it was loaded as; empty for one that was put together.
    """

    vae: VAE
    text_encoder: TextEncoder
    core: SanaTransformer2DModel
    image_size: int
    flow_shift: float | None = None
    placement: Placement = field(default_factory=host)
    part: str = ""
    name: str = ""

    def __repr__(self) -> str:
        parts = f"{self.vae.name or type(self.vae).__name__} ({self.vae.spec.label}), "
        parts += self.text_encoder.name or type(self.text_encoder).__name__
        size = sum(parameter.numel() for parameter in self.core.parameters())
        return f"<LatentDiffusion {self.name or 'put together'}: {self.image_size} px, {parts}, core of {size:,}>"

    def __post_init__(self) -> None:
        spec, config = self.vae.spec, self.core.config
        if config.in_channels != spec.latent_channels:
            raise SanakitError(
                "SK0110", f"the core reads {config.in_channels} channels, {self.vae.name} gives {spec.latent_channels}"
            )
        if config.caption_channels != self.text_encoder.spec.embed_dim:
            raise SanakitError(
                "SK0110",
                f"the core reads captions of {config.caption_channels}, "
                f"{self.text_encoder.name} gives {self.text_encoder.spec.embed_dim}",
            )
        cell = spec.spatial_compression_ratio * config.patch_size
        if self.image_size % cell:
            raise SanakitError("SK0110", f"images of {self.image_size} px do not divide into tokens of {cell} px")
        if self.flow_shift is None:
            self.flow_shift = flow_shift_for(self.latent_shape)
        self.timestep_scale = TIMESTEP_SCALE * config.timestep_scale  # kept: a wrapped core has no config
        with self.placement.holding(self.text_encoder):
            self.null = self.text_encoder.null()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.vae.spec.shape(self.image_size, self.image_size)

    @property
    def num_tokens(self) -> int:
        _, height, width = self.latent_shape
        return height * width // self.core.config.patch_size**2

    def velocity(self, noisy: Tensor, sigmas: Tensor, prompt: PromptEmbeds) -> Tensor:
        """Predicted `noise - latents`: noisy (B, C, h, w), sigmas (B,), prompt of B -> (B, C, h, w), on noisy's
        device."""
        weight = next(self.core.parameters())
        device, dtype = weight.device, weight.dtype
        half = dtype in (torch.float16, torch.bfloat16)  # the core itself, as a frozen base's may be
        predicted = self.core(
            hidden_states=noisy.to(device, dtype) if half else noisy.to(device),
            encoder_hidden_states=prompt.embeds.to(device).to(dtype if half else torch.float32),
            encoder_attention_mask=prompt.mask.to(device),
            timestep=sigmas.to(device) * self.timestep_scale,
            return_dict=False,
        )[0]
        return predicted.to(noisy) if half else predicted.to(noisy.device)

    def drop_prompts(self, prompt: PromptEmbeds, drop: Tensor) -> PromptEmbeds:
        """Replace the prompts where `drop` (B,) is set by the null embedding that sampling uses."""
        embeds = torch.where(drop[:, None, None], self.null.embeds.to(prompt.embeds.dtype), prompt.embeds)
        return PromptEmbeds(embeds, torch.where(drop[:, None], self.null.mask, prompt.mask))


@contextmanager
def core_at_work(*systems: LatentDiffusion, exact: bool = False) -> Iterator[None]:
    """Cores on their devices, in eval mode and without gradients; afterwards where and as they were. exact: a frozen
    base's too in the precision that it was loaded in."""
    with ExitStack() as stack:
        for system in systems:
            stack.enter_context(system.placement.holding(system.core, part="" if exact else system.part))
            stack.enter_context(evaluating(system.core))
        yield


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """eval mode without gradients, the old mode restored."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)
