"""Held-out quality of a system: velocity loss by sigma.

All of it on fixed images, fixed noise and fixed sigmas, so that two systems are compared pair by pair.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor, nn

from sanakit.assembly import LatentDiffusion, core_at_work
from sanakit.data.dataset import LatentDataset
from sanakit.flow import EVAL_SIGMAS, interpolate, velocity_loss
from sanakit.ranks.sharing import shared
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
    """Evaluate on the first `count` images, with their evaluation captions. prompt: "own", "null" or "shuffled". The
    ranks of a run share the chunks and sigmas."""
    count = min(count, len(data))
    asked = torch.roll(torch.arange(count), count // 2) if prompt == "shuffled" else torch.arange(count)
    noise, put = fixed_noise(data, count, seed), system.placement.put

    def prompts_of(part: slice) -> PromptEmbeds:
        prompts = data.evaluation_prompts(asked[part])
        return system.drop_prompts(prompts, torch.ones(len(prompts), dtype=torch.bool)) if prompt == "null" else prompts

    def measure(pairs: Sequence[tuple[int, float]]) -> list[Tensor]:
        losses: list[Tensor] = []
        for start, of_chunk in groupby(pairs, itemgetter(0)):  # a chunk goes to the device once, for all sigmas
            part = slice(start, min(start + CHUNK, count))
            latents, drawn, prompts = put(data.latents[part, 0]), put(noise[part]), prompts_of(part).map(put)
            rows = []
            for _, sigma in of_chunk:
                level = torch.full((part.stop - start,), sigma, device=latents.device)
                velocity = system.velocity(interpolate(latents, drawn, level), level, prompts)
                rows.append(velocity_loss(velocity, latents, drawn))
            losses += torch.stack(rows).cpu().unbind()
        return losses

    pairs = chunks_and_sigmas(count, sigmas)
    with core_at_work(system):
        return HeldOut(sigmas, by_sigma(shared(pairs, measure), len(sigmas)))


def chunks_and_sigmas(count: int, sigmas: tuple[float, ...]) -> list[tuple[int, float]]:
    """What ranks share: (first image of a chunk, sigma), all sigmas of a chunk together."""
    return [(start, sigma) for start in range(0, count, CHUNK) for sigma in sigmas]


def by_sigma(results: list[Tensor], num_sigmas: int) -> Tensor:
    """Results of `chunks_and_sigmas`, (B, ...) each, as (S, N, ...)."""
    return torch.stack([torch.cat(results[place::num_sigmas]) for place in range(num_sigmas)])


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
