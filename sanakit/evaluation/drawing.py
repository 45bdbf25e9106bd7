"""What an evaluation asks of a system, and what it draws: held-out prompts, each drawn with several seeds.

The noise of a sample depends on (seed, number of the draw, number of the prompt) alone: it is the same for two systems
of one latent shape, whatever the batches.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sanakit.assembly import LatentDiffusion
from sanakit.batching import in_batches
from sanakit.data import ImageDataset
from sanakit.data.cache import Progress, silent
from sanakit.errors import SanakitError
from sanakit.evaluation.clip import DEFAULT_CLIP, Clip, load_clip
from sanakit.evaluation.image_features import CLIP, THUMBNAIL, load_features
from sanakit.placement import Placement, host
from sanakit.ranks.sharing import shared
from sanakit.sampling import require_finite, sample_euler

NUM_STEPS, GUIDANCE_SCALE = 24, 3.0  # of samples that are scored
FEWEST = 8  # prompts of an evaluation
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Asked:
    """prompts: N held-out captions, as the base reads them and metrics do. truth: (N, 3, H, W) uint8, the images that
    they describe. reference: (M, 3, H, W) uint8, as many images of the training split, which distances are measured to.
    translated: the prompts as a candidate text encoder reads them, where it reads others."""

    prompts: list[str]
    truth: Tensor
    reference: Tensor
    translated: list[str] = field(default_factory=list)

    @property
    def candidate_prompts(self) -> list[str]:
        """As a candidate text encoder reads them."""
        return self.translated or self.prompts


@dataclass(kw_only=True)
class Drawn:
    """What metrics read. images: (S, N, 3, H, W) uint8, prompt n drawn with seed s. features: name of the image
    features that `of_samples` gives. clip: the model of metrics that need one. placement: where features are computed.
    """

    asked: Asked
    images: Tensor
    features: str = THUMBNAIL
    clip: str = DEFAULT_CLIP
    placement: Placement = field(default_factory=host)
    kept: dict[tuple[str, str], Tensor] = field(default_factory=dict)  # features that were computed, by name and side
    shared: dict[tuple[str, str], Tensor] = field(default_factory=dict)  # of truth and reference, for all systems

    @property
    def prompts(self) -> list[str]:
        return self.asked.prompts

    @property
    def num_prompts(self) -> int:
        return len(self.asked.prompts)

    @property
    def num_seeds(self) -> int:
        return len(self.images)

    def beside(self, images: Tensor) -> "Drawn":
        """What another system drew for the same prompts; features of the true images are shared."""
        return replace(self, images=images, kept={})

    def within(self, features: str) -> "Drawn":
        """The same images in other features; what was computed is kept for both."""
        return replace(self, features=features)

    @property
    def label(self) -> str:
        """The name of the features, as scores say it."""
        return load_features(self.features, self.clip).label

    def of_samples(self) -> Tensor:
        """Features of the samples. (S, N, D)"""
        return self._of_samples(self.features)

    def of_truth(self) -> Tensor:
        """Features of the images that the prompts describe. (N, D)"""
        return self._compute(self.shared, "truth", self.asked.truth, self.features)

    def of_reference(self) -> Tensor:
        """Features of the reference images. (M, D)"""
        return self._compute(self.shared, "reference", self.asked.reference, self.features)

    def clip_model(self) -> Clip:
        return load_clip(self.clip)

    def clip_images(self) -> Tensor:
        """The CLIP model's embeddings of the samples, of length 1. (S, N, D)"""
        return self._of_samples(CLIP)

    def clip_truth(self) -> Tensor:
        """The same of the images that the prompts describe. (N, D)"""
        return self._compute(self.shared, "truth", self.asked.truth, CLIP)

    def clip_texts(self) -> Tensor:
        """Its embeddings of the prompts, of length 1. (N, D)"""
        key, tower = (CLIP, "texts"), self.clip_model()
        if key not in self.shared:
            with self.placement.holding(tower.model):
                self.shared[key] = tower.embed_texts(self.prompts)
        return self.shared[key]

    def _of_samples(self, name: str) -> Tensor:
        flat = self._compute(self.kept, "samples", self.images.flatten(0, 1), name)
        return flat.unflatten(0, self.images.shape[:2])

    def _compute(self, kept: dict[tuple[str, str], Tensor], side: str, images: Tensor, name: str) -> Tensor:
        if (name, side) not in kept:
            features = load_features(name, self.clip)
            with self.placement.holding(features.model):

                def compute(part: Tensor) -> Tensor:
                    return features.compute(as_float(part)).float().cpu()

                def compute_runs(starts: Sequence[int]) -> list[Tensor]:
                    runs = [images[start : start + BATCH] for start in starts]
                    return batch_by_batch(runs, compute, f"features {features.label}")

                kept[name, side] = torch.cat(shared(range(0, len(images), BATCH), compute_runs))
        return kept[name, side]


def ask(images: ImageDataset, count: int, size: int) -> Asked:
    """The first `count` held-out images in evaluation order, with their evaluation captions; at most all of them.
    Raises SK0403 for fewer than FEWEST held-out or training images."""
    held_out, train = images.split(True), images.split(False)
    count = min(count, len(held_out), len(train))
    if count < FEWEST:
        raise SanakitError(
            "SK0403",
            f"{images.source} has {len(held_out)} held-out images and {len(train)} of the training split, "
            f"{FEWEST} prompts are the fewest of an evaluation",
            fix="Give more images: one in ten is held out.",
        )
    return asked_of(held_out, train, count, size)


def asked_of(held_out: ImageDataset, train: ImageDataset, count: int, size: int) -> Asked:
    """From the two splits."""
    chosen, others = (split.subset(list(range(min(count, len(split))))) for split in (held_out, train))
    truth, reference = (torch.from_numpy(part.pixels(size)).permute(0, 3, 1, 2) for part in (chosen, others))
    prompts, translated = (side.evaluation_captions() for side in (chosen.for_base(), chosen))
    return Asked(prompts=prompts, truth=truth, reference=reference, translated=translated)


def draw(
    system: LatentDiffusion,
    prompts: list[str],
    *,
    num_seeds: int,
    seed: int = 0,
    num_steps: int = NUM_STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    progress: Progress = silent,
    label: str = "drawing samples",
) -> Tensor:
    """(S, N, 3, H, W) uint8; the ranks of a run share the batches. Raises SK0507 where an image is not finite."""
    with system.placement.holding(system.text_encoder):
        embeds = system.text_encoder.encode(prompts)
    total, done = num_seeds * len(prompts), 0

    def drawn(rows: Any) -> Tensor:
        nonlocal done
        noise = torch.stack([noise_of(system.latent_shape, seed, *divmod(row, len(prompts))) for row in rows])
        chosen = embeds[torch.tensor([row % len(prompts) for row in rows])]
        latents = sample_euler(system, chosen, num_steps=num_steps, guidance_scale=guidance_scale, noise=noise)
        with system.placement.holding(system.vae):
            images = system.vae.decode(latents)
        require_finite(images)
        done += len(rows)
        progress(label, done, total)
        return as_bytes(images)

    def draw_runs(starts: Sequence[int]) -> list[Tensor]:
        nonlocal done
        done = starts[0]
        return batch_by_batch([range(start, min(start + BATCH, total)) for start in starts], drawn, label)

    progress(label, 0, total)
    parts = shared(range(0, total, BATCH), draw_runs)
    if done < total:  # the rest was drawn by other ranks
        progress(label, total, total)
    return torch.cat(parts).unflatten(0, (num_seeds, len(prompts)))


def batch_by_batch(runs: Sequence[Any], work: Callable[[Any], Tensor], what: str) -> list[Tensor]:
    """`work` of every run of BATCH rows, in smaller batches from where the device ran out of memory."""
    results, size = [], BATCH
    for run in runs:
        parts, size = in_batches(run, size, work, what=what)
        results.append(torch.cat(parts))
    return results


def noise_of(shape: tuple[int, ...], seed: int, number: int, place: int) -> Tensor:
    """Noise of draw `number` of the prompt at `place`."""
    digest = hashlib.sha256(f"{seed}/{number}/{place}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return torch.randn(shape, generator=generator)


def as_bytes(images: Tensor) -> Tensor:
    """[-1, 1] -> 0 to 255, as an image file holds it."""
    return images.clamp(-1, 1).add(1).mul(127.5).round().byte().cpu()


def as_float(images: Tensor) -> Tensor:
    """0 to 255 -> [-1, 1]."""
    return images.float().div(127.5).sub(1)
