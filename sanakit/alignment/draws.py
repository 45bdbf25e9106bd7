"""What two cores read side by side: the same images, captions, sigmas and coupled noise, from a seed alone.

Noise is drawn anew whenever it is asked for, by the seed of its own draw: nothing but indices is kept, and the size of
a chunk changes no number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sanakit.alignment.coupling import couple_noise, patch_rotation
from sanakit.assembly import LatentDiffusion
from sanakit.data.dataset import CHOICES, LatentDataset, row_noise
from sanakit.flow import interpolate, sample_sigmas
from sanakit.text_encoders import PromptEmbeds

PROMPT_DROPOUT = 0.1  # share of draws with the null prompt, as in training
COMPARED = 64  # images by which equal latents are told


@dataclass(frozen=True, kw_only=True)
class Side:
    """One core's view of the draws: its system and its own encoding of the images."""

    system: LatentDiffusion
    data: LatentDataset


@dataclass(frozen=True, kw_only=True)
class PairedDraws:
    """candidate, base: both sides. indices, views, choices, dropped, seeds: (N,) image, mirrored view, caption, null
    prompt and seed of the noise of every draw. sigmas: (N,). rotation: from the candidate's patches to the base's; None
    where both read the same latents and so the same noise."""

    candidate: Side
    base: Side
    indices: Tensor
    views: Tensor
    choices: Tensor
    dropped: Tensor
    seeds: Tensor
    sigmas: Tensor
    rotation: Tensor | None
    chunk_size: int = 64

    def __len__(self) -> int:
        return len(self.sigmas)

    @property
    def chunks(self) -> list[slice]:
        starts = range(0, len(self), self.chunk_size)
        return [slice(start, min(start + self.chunk_size, len(self))) for start in starts]

    def prompt(self, side: Side, rows: slice) -> PromptEmbeds:
        prompt = side.data.prompts(self.indices[rows], self.choices[rows])
        return side.system.drop_prompts(prompt, self.dropped[rows])

    def noisy(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Noised latents of the candidate (B, C, h, w) and of the base."""
        latents, base_latents = self._latents(self.candidate, rows), self._latents(self.base, rows)
        noise = self._noise(latents, rows)
        base_noise = noise
        if self.rotation is not None:
            free = self._noise(base_latents, rows, other=True)
            patches = {
                "patch_size": self.candidate.system.core.config.patch_size,
                "base_patch_size": self.base.system.core.config.patch_size,
            }
            base_noise = couple_noise(self.rotation, noise, free, **patches)
        return interpolate(latents, noise, self.sigmas[rows]), interpolate(base_latents, base_noise, self.sigmas[rows])

    def velocity(self, rows: slice) -> Tensor:
        """`noise - latents` of the candidate. (B, C, h, w)"""
        latents = self._latents(self.candidate, rows)
        return self._noise(latents, rows) - latents

    def _latents(self, side: Side, rows: slice) -> Tensor:
        return side.data.latents[self.indices[rows], self.views[rows]]

    def _noise(self, like: Tensor, rows: slice, *, other: bool = False) -> Tensor:
        return row_noise(like, torch.Generator(), self.seeds[rows] + int(other))


def draw_pairs(candidate: Side, base: Side, *, count: int, seed: int, chunk_size: int = 64) -> PairedDraws:
    """`count` draws of both sides' training images in a random order, every image once before any is seen again."""
    generator = torch.Generator().manual_seed(seed)
    total = len(candidate.data)
    rounds = [torch.randperm(total, generator=generator) for _ in range(-(-count // total))]
    shift = float(candidate.system.flow_shift or 1.0)
    rotation = None
    if not same_latents(candidate.data, base.data):
        cores = candidate.system.core, base.system.core
        rotation = patch_rotation(*cores, candidate.data.latents, base.data.latents)
    return PairedDraws(
        candidate=candidate,
        base=base,
        indices=torch.cat(rounds)[:count],
        views=torch.randint(candidate.data.latents.shape[1], (count,), generator=generator),
        choices=torch.randint(CHOICES, (count,), generator=generator),
        dropped=torch.rand(count, generator=generator) < PROMPT_DROPOUT,
        seeds=2 * torch.randint(1 << 61, (count,), generator=generator),
        sigmas=sample_sigmas(count, shift=shift, generator=generator),
        rotation=rotation,
        chunk_size=chunk_size,
    )


def same_latents(data: LatentDataset, base_data: LatentDataset) -> bool:
    """Do both sides hold the same numbers, as they do where the text encoder is swapped?"""
    rows = torch.arange(min(COMPARED, len(data)))
    latents, base_latents = data.latents[rows, 0], base_data.latents[rows, 0]
    return latents.shape == base_latents.shape and bool(torch.equal(latents, base_latents))


def same_captions(data: LatentDataset, base_data: LatentDataset) -> bool:
    """Do both text encoders give the same embeddings?"""
    captions, base_captions = data.captions[:COMPARED], base_data.captions[:COMPARED]

    def same(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and bool(torch.equal(a, b))

    return same(captions.embeds, base_captions.embeds) and same(captions.mask, base_captions.mask)
