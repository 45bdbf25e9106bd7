"""Held-out quality of a system: velocity loss by sigma.

All of it on fixed images, fixed noise and fixed sigmas, so that two systems are compared pair by pair.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sanakit.assembly import LatentDiffusion, core_at_work
from sanakit.data.dataset import LatentDataset
from sanakit.flow import EVAL_SIGMAS, interpolate, velocity_loss
from sanakit.text_encoders import PromptEmbeds

CHUNK = 64


@dataclass(frozen=True)
class HeldOut:
    """losses: (S, N) velocity loss per sigma and image."""

    sigmas: tuple[float, ...]
    losses: Tensor

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
    sigmas: tuple[float, ...] = EVAL_SIGMAS,
) -> HeldOut:
    """Evaluate on the first `count` images, with their evaluation captions. prompt: "own", "null" or "shuffled"."""
    count = min(count, len(data))
    indices = torch.arange(count)
    noise = fixed_noise(data, count, seed)
    prompts = data.evaluation_prompts(indices)
    if prompt == "null":
        prompts = system.drop_prompts(prompts, torch.ones(count, dtype=torch.bool))
    elif prompt == "shuffled":
        order = torch.roll(indices, count // 2)
        prompts = PromptEmbeds(prompts.embeds[order], prompts.mask[order])
    losses = torch.empty(len(sigmas), count)
    put = system.placement.put
    with core_at_work(system):
        for start in range(0, count, CHUNK):  # a chunk goes to the device once, for all sigmas
            part = slice(start, min(start + CHUNK, count))
            latents, drawn, asked = put(data.latents[part, 0]), put(noise[part]), prompts[part].map(put)
            rows = []
            for sigma in sigmas:
                level = torch.full((part.stop - start,), sigma, device=latents.device)
                velocity = system.velocity(interpolate(latents, drawn, level), level, asked)
                rows.append(velocity_loss(velocity, latents, drawn))
            losses[:, part] = torch.stack(rows).cpu()
    return HeldOut(sigmas, losses)


def fixed_noise(data: LatentDataset, count: int, seed: int) -> Tensor:
    """The noise that the first `count` images are evaluated with. (count, C, h, w)"""
    return torch.randn(data.latents[:count, 0].shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def averaged(core: nn.Module, average: dict[str, Tensor] | None) -> Iterator[None]:
    """The core with the weights of `average` (an EMA), its own restored afterwards."""
    if average is None:
        yield
        return
    trained = {k: v.clone() for k, v in core.state_dict().items()}
    core.load_state_dict(average)
    try:
        yield
    finally:
        core.load_state_dict(trained)
