"""Held-out quality of a system: velocity loss by sigma, conditional gain, decoded one-step error.

All of it on fixed pictures, fixed noise and fixed sigmas, so that two systems are compared pair by pair.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sanakit.assembly import LatentDiffusion, evaluating
from sanakit.data.cache import LatentDataset
from sanakit.flow import EVAL_SIGMAS, interpolate, predict_clean, shift_sigmas, velocity_loss
from sanakit.text_encoders import PromptEmbeds

CHUNK = 64
BASE_SIGMAS = (0.5, 0.7)  # where the base's clean estimates are decoded


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


def matched_sigmas(system: LatentDiffusion, base: LatentDiffusion) -> tuple[float, ...]:
    """Sigmas of `system` that leave as much of a picture as BASE_SIGMAS leave in the base's latents.

    Noise hides less of a picture the more numbers describe it: alpha = sqrt(numbers / the base's numbers), then the
    shift of RAE (arXiv 2510.11690).
    """
    size = lambda shape: shape[0] * shape[1] * shape[2]
    alpha = (size(system.latent_shape) / size(base.latent_shape)) ** 0.5
    return tuple(round(shift_sigmas(torch.tensor(s, dtype=torch.float64), alpha).item(), 4) for s in BASE_SIGMAS)


def held_out(
    system: LatentDiffusion,
    data: LatentDataset,
    *,
    count: int = 256,
    seed: int = 1,
    prompt: str = "own",
    images: Tensor | None = None,
    sigmas: tuple[float, ...] = EVAL_SIGMAS,
    image_sigmas: tuple[float, ...] = BASE_SIGMAS,
) -> HeldOut:
    """Evaluate on the first `count` pictures.

    prompt: "own", "null" or "shuffled" captions. images: (N, 3, H, W) in [-1, 1]; where given, the clean estimates at
    `image_sigmas` are decoded and compared with them.
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
    decoded = image_sigmas if images is not None else ()
    with evaluating(system.core):
        for sigma in sorted({*sigmas, *decoded}):
            for start in range(0, count, CHUNK):
                part = slice(start, min(start + CHUNK, count))
                latents, level = data.latents[part, 0], torch.full((part.stop - start,), sigma)
                noisy = interpolate(latents, noise[part], level)
                velocity = system.velocity(noisy, level, own[part])
                if sigma in sigmas:
                    losses[sigmas.index(sigma), part] = velocity_loss(velocity, latents, noise[part])
                if images is not None and sigma in decoded:
                    picture = system.vae.decode(predict_clean(noisy, velocity, level))
                    errors[part] += (picture - images[part]).square().mean((1, 2, 3)) / len(decoded)
    return HeldOut(sigmas, losses, errors if images is not None else None)


def conditional_gain(system: LatentDiffusion, data: LatentDataset, *, count: int = 256) -> Tensor:
    """loss(null prompt) - loss(own prompt) per picture, mean over sigmas. (N,)"""
    own = held_out(system, data, count=count)
    null = held_out(system, data, count=count, prompt="null")
    return (null.losses - own.losses).mean(0)


@contextmanager
def averaged(core: nn.Module, average: dict[str, Tensor] | None) -> Iterator[None]:
    """The core with the weights of `average` (an EMA), its own restored afterwards."""
    if average is None:
        yield
        return
    own = {k: v.clone() for k, v in core.state_dict().items()}
    core.load_state_dict(average)
    try:
        yield
    finally:
        core.load_state_dict(own)
