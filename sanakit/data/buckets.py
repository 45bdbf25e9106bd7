"""Aspect-ratio buckets: image sizes of about one area whose sides divide into whole tokens, for any spatial ratio.

An image goes to the bucket of the nearest aspect ratio, is scaled to cover it and loses what stands over (NovelAI's
scheme, as SDXL and Sana train).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanakit.data.images import image_size
from sanakit.data.rows import Rows
from sanakit.data.table import ImageDataset

Size = tuple[int, int]  # height, width


def bucket_sizes(image_size: int, cell: int, max_aspect: float) -> list[Size]:
    """(height, width) multiples of `cell` pixels, aspect at most `max_aspect`, area nearest to image_size squared."""
    sizes = set()
    for height in range(cell, math.ceil(image_size * max_aspect**0.5 / cell) * cell + 1, cell):
        width = max(cell, round(image_size**2 / height / cell) * cell)
        if max(height / width, width / height) <= max_aspect:
            sizes |= {(height, width), (width, height)}
    return sorted(sizes, key=lambda size: size[1] / size[0])


def assign(aspects: Sequence[float] | np.ndarray, sizes: Sequence[Size], at_least: int = 1) -> list[int]:
    """The nearest size of every image by log of width over height; a bucket of fewer than `at_least` images is left
    out and its images go to the nearest that stays, so that no batch holds an image twice."""
    logs = np.log([width / height for height, width in sizes])
    order = np.argsort(logs)
    wanted = np.log(np.asarray(aspects, dtype=np.float64))
    while True:
        middles = (logs[order][1:] + logs[order][:-1]) / 2
        chosen = order[np.searchsorted(middles, wanted)]
        used, counts = np.unique(chosen, return_counts=True)
        if counts.min() >= at_least or len(used) == 1:
            return chosen.tolist()
        order = order[order != used[counts.argmin()]]


def aspects(dataset: ImageDataset) -> np.ndarray:
    """Width over height of every image as it is shown, from its header alone. (N,)"""
    sizes = dataset.sizes()
    if sizes is None:
        sizes = np.array([image_size(data) for data in dataset.images])
    return sizes[:, 0] / sizes[:, 1]


class Bucketed:
    """Latents of several shapes behind one index: `latents[rows, view]` for rows of one bucket.

    blocks: (n, M, C, h, w) a bucket. members: the images of each bucket, in the order of its block.
    """

    def __init__(self, blocks: list[Tensor | Rows], members: list[Tensor]) -> None:
        self.blocks, self.members = blocks, members
        total = sum(len(m) for m in members)
        self.block, self.row = torch.empty(total, dtype=torch.long), torch.empty(total, dtype=torch.long)
        for number, rows in enumerate(members):
            self.block[rows], self.row[rows] = number, torch.arange(len(rows))
        self.shape = (total, blocks[0].shape[1], blocks[0].shape[2])  # images, views, channels

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: tuple[Tensor, Any]) -> Tensor:
        rows, view = key
        number = int(self.block[rows[0]])
        assert bool((self.block[rows] == number).all()), "rows of one bucket"
        return self.blocks[number][self.row[rows], view]
