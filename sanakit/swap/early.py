"""What is known of a swap before anything is measured: whether there are enough images and they have the base's
size, and which ones are sampled."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sanakit.config import Config
from sanakit.data import ImageDataset
from sanakit.data.cache import to_images
from sanakit.data.survey import write_ledger
from sanakit.errors import SanakitError

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

NO_BASE = "none"
MIN_IMAGES = 64
ALONE_SIZE = 96  # px, of a component without a base: the embedded world's
SPLITS = ("training", "held out")


def require_base(config: Config, stages: Sequence[str]) -> None:
    """Raises SK0104 for stages that compare with a base, where there is none."""
    if config.base == NO_BASE and (needing := [stage for stage in stages if stage != "component"]):
        raise SanakitError(
            "SK0104",
            f"stages {', '.join(needing)} need a base, found --base {NO_BASE}; component does not",
            fix="Name a base, or ask for stage component alone.",
        )


def decide_image_size(config: Config, trained_at: int | None) -> Config:
    """The configuration with `data.image_size`: what it states, else the size that the base was trained at, as its card
    says; ALONE_SIZE for a component alone. Raises SK0104 where a swap states another size than the base's; a VAE that
    is trained alone may see any."""
    stated = config.data.image_size
    if stated is None:
        size = int(trained_at or ALONE_SIZE)
        return config.model_copy(update={"data": config.data.model_copy(update={"image_size": size})})
    if trained_at is not None and trained_at != stated and not config.trains_vae_alone:
        raise SanakitError(
            "SK0104",
            f"data.image_size is {stated}, {config.base} was trained at {trained_at}",
            fix=f"Leave data.image_size out, or use --set data.image_size={trained_at}",
        )
    return config


def require_that_prompts_matter(swap: "Swap") -> None:
    """Raises SK0503 for a text encoder swap in a base that ignores its captions, before anything is trained."""
    if swap.config.kind == "text_encoder":
        target = swap.target
        assert target.unit > 0


def sample_parts(splits: Sequence[ImageDataset], count: int) -> list[tuple[ImageDataset, list[str], str]]:
    """Images, the sample prompts that describe them, and the split: half of the training split, half held out, spread
    over the data set."""
    parts = []
    for data, split, share in zip(splits, SPLITS, (count // 2, count - count // 2), strict=True):
        rows, captions = np.linspace(0, len(data) - 1, share).astype(int), data.evaluation_captions()
        parts.append((data.subset(rows), [captions[row] for row in rows], split))
    return parts


def truth_of(parts: Sequence[tuple[ImageDataset, list[str], str]], size: int) -> tuple[Tensor, list[str]]:
    """Their images, (B, 3, size, size) in [-1, 1], and the split of each."""
    images = torch.cat([to_images(part.pixels(size)) for part, _, _ in parts])
    return images, [split for part, _, split in parts for _ in range(len(part))]


def refuse_few_images(images: ImageDataset, ledger: Path | None = None) -> None:
    """Raises SK0403 for too few images; the ledger of those set aside is written and named."""
    if len(images) < MIN_IMAGES:
        told = f"{images.source} holds {len(images)} images, at least {MIN_IMAGES} are needed"
        if images.ledger:
            path = write_ledger(images.ledger, images.source, ledger)
            told += f"; {len(images.ledger)} were set aside, reasons: {path}"
        raise SanakitError("SK0403", told)
