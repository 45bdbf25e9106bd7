"""Held-out quality of a system: velocity loss by sigma, conditional gain, decoded one-step error.

All of it on fixed pictures, fixed noise and fixed sigmas, so that two systems are compared pair by pair.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sanakit.assembly import LatentDiffusion, evaluating
from sanakit.data.cache import LatentDataset
from sanakit.flow import EVAL_SIGMAS, interpolate, predict_clean, velocity_loss
from sanakit.text_encoders import PromptEmbeds

CHUNK = 64


@dataclass(frozen=True)
class HeldOut:
    """losses: (S, N) velocity loss per sigma and picture. one_step: (N,) pixel MSE of decoded clean estimates."""

    sigmas: tuple[float, ...]
    losses: Tensor
    one_step: Tensor | None = None

    @property
    def loss(self) -> float:
        return self.losses.mean().item()

    @property
    def by_sigma(self) -> dict[str, float]:
        return {f"{s:g}": value for s, value in zip(self.sigmas, self.losses.mean(1).tolist(), strict=True)}


def held_out(
    system: LatentDiffusion,
    data: LatentDataset,
    *,
    count: int = 256,
    seed: int = 1,
    prompt: str = "own",
    images: Tensor | None = None,
    sigmas: tuple[float, ...] = EVAL_SIGMAS,
) -> HeldOut:
    """Evaluate on the first `count` pictures.

    prompt: "own", "null" or "shuffled" captions. images: (N, 3, H, W) in [-1, 1]; where given, the clean estimate at
    sigma 0.5 and 0.7 is decoded and compared with them (both latent spaces are unit-variance, so equal sigma is
    equal signal-to-noise).
    """
    count = min(count, len(data))
    indices = torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(data.latents[:count, 0].shape, generator=generator)
    own = data.prompts(indices, torch.full((count,), 1))
    if prompt == "null":
        own = system.drop_prompts(own, torch.ones(count, dtype=torch.bool))
    elif prompt == "shuffled":
        order = torch.roll(indices, count // 2)
        own = PromptEmbeds(own.embeds[order], own.mask[order])
    losses = torch.empty(len(sigmas), count)
    errors = torch.zeros(count)
    decoded = [s for s in sigmas if 0.4 < s < 0.8]
    with evaluating(system.core):
        for row, sigma in enumerate(sigmas):
            for start in range(0, count, CHUNK):
                part = slice(start, min(start + CHUNK, count))
                latents, level = data.latents[part, 0], torch.full((part.stop - start,), sigma)
                noisy = interpolate(latents, noise[part], level)
                velocity = system.velocity(noisy, level, own[part])
                losses[row, part] = velocity_loss(velocity, latents, noise[part])
                if images is not None and sigma in decoded:
                    picture = system.vae.decode(predict_clean(noisy, velocity, level))
                    errors[part] += (picture - images[part]).square().mean((1, 2, 3)) / len(decoded)
    return HeldOut(sigmas, losses, errors if images is not None else None)


def conditional_gain(system: LatentDiffusion, data: LatentDataset, *, count: int = 256) -> Tensor:
    """loss(null prompt) - loss(own prompt) per picture, mean over sigmas. (N,)"""
    own = held_out(system, data, count=count)
    null = held_out(system, data, count=count, prompt="null")
    return (null.losses - own.losses).mean(0)
