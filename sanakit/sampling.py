"""Samplers, one flat function each."""

import itertools

import torch
from torch import Tensor

from sanakit.assembly import LatentDiffusion, evaluating
from sanakit.flow import shift_sigmas
from sanakit.text_encoders import PromptEmbeds


def sample_euler(
    system: LatentDiffusion,
    prompt: PromptEmbeds,
    *,
    num_steps: int = 24,
    guidance_scale: float = 3.0,
    seed: int = 0,
) -> Tensor:
    """Euler steps of dx/dsigma = velocity from sigma 1 to 0, classifier-free guidance; latents (B, C, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((len(prompt), *system.latent_shape), generator=generator)
    sigmas = shift_sigmas(torch.linspace(1, 0, num_steps + 1), float(system.flow_shift or 1.0))
    null = system.drop_prompts(prompt, torch.ones(len(prompt), dtype=torch.bool))
    both = PromptEmbeds(torch.cat([prompt.embeds.float(), null.embeds.float()]), torch.cat([prompt.mask, null.mask]))
    with evaluating(system.core):
        for sigma, following in itertools.pairwise(sigmas):
            level = sigma.expand(2 * len(prompt))
            with_prompt, without = system.velocity(torch.cat([x, x]), level, both).chunk(2)
            velocity = without + guidance_scale * (with_prompt - without)
            x = x + (following - sigma) * velocity
    return x


def sample_images(system: LatentDiffusion, prompts: list[str], **options: float) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] for prompts; options are those of `sample_euler`."""
    latents = sample_euler(system, system.text_encoder.encode(prompts), **options)  # type: ignore[arg-type]
    return system.vae.decode(latents)
