"""Samplers, one flat function each."""

import torch
from torch import Tensor

from sanakit.assembly import LatentDiffusion, core_at_work
from sanakit.flow import shift_sigmas
from sanakit.text_encoders import PromptEmbeds


def sample_euler(
    system: LatentDiffusion,
    prompt: PromptEmbeds,
    *,
    num_steps: int = 24,
    guidance_scale: float = 3.0,
    seed: int = 0,
    noise: Tensor | None = None,
) -> Tensor:
    """Euler steps of dx/dsigma = velocity from sigma 1 to 0, classifier-free guidance; latents (B, C, h, w) on the CPU.

    noise: (B, C, h, w) to start from, in place of what `seed` draws. Noise and prompts go to the device once, latents
    come back once.
    """
    if noise is None:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((len(prompt), *system.latent_shape), generator=generator)
    sigmas = shift_sigmas(torch.linspace(1, 0, num_steps + 1), float(system.flow_shift or 1.0))
    null = system.drop_prompts(prompt, torch.ones(len(prompt), dtype=torch.bool))
    put, count = system.placement.put, len(prompt)
    with core_at_work(system):
        x = put(noise)
        # the null prompt is one row on the device
        both = PromptEmbeds(
            torch.cat([put(prompt.embeds).float(), put(null.embeds[:1]).float().expand(count, -1, -1)]),
            torch.cat([put(prompt.mask), put(null.mask[:1]).expand(count, -1)]),
        )
        levels = put(sigmas)
        for level, step in zip(levels, (sigmas[1:] - sigmas[:-1]).tolist(), strict=False):
            with_prompt, without = system.velocity(torch.cat([x, x]), level.expand(2 * count), both).chunk(2)
            velocity = without + guidance_scale * (with_prompt - without)
            x = x + step * velocity
    return x.cpu()


def sample_images(system: LatentDiffusion, prompts: list[str], **options: float) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] for prompts; options are those of `sample_euler`."""
    with system.placement.holding(system.text_encoder):
        embeddings = system.text_encoder.encode(prompts)
    latents = sample_euler(system, embeddings, **options)  # type: ignore[arg-type]
    with system.placement.holding(system.vae):
        return system.vae.decode(latents)
