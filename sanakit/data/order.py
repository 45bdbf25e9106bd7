"""Which images a step sees: a function of (seed, step) alone, so nothing has to be kept to resume mid-epoch.

Every epoch is one permutation, cut into consecutive batches across epoch borders. With aspect-ratio buckets each bucket
has such a stream of its own; a fixed round of batches serves every bucket in proportion to its images.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


def batch_indices(total: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Image indices of a step: consecutive slices of one permutation an epoch, across epoch borders."""
    start = step * batch_size
    parts, needed = [], batch_size
    while needed:
        epoch, offset = divmod(start, total)
        parts.append(epoch_order(total, seed * 7_919 + epoch)[offset : offset + needed])
        start += len(parts[-1])
        needed -= len(parts[-1])
    return torch.cat(parts)


def bucket_batch_indices(members: Sequence[Tensor], batch_size: int, step: int, seed: int) -> Tensor:
    """Image indices of a step, all of one bucket; members: the images of each bucket."""
    counts = tuple(len(m) for m in members)
    bucket, turn = bucket_turn(counts, step)
    images = members[bucket]
    return images[batch_indices(len(images), batch_size, turn, seed * len(members) + bucket)]


def bucket_turn(counts: tuple[int, ...], step: int) -> tuple[int, int]:
    """The bucket of a step, and how many steps that bucket had before it."""
    round_, before = _round(counts)
    number, place = divmod(step, len(round_))
    bucket = int(round_[place])
    return bucket, number * counts[bucket] + int(before[place])


@functools.lru_cache(maxsize=2)
def _round(counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A round of sum(counts) steps in which bucket b has counts[b], evenly spread: its j-th is due at (j + 1/2) /
    counts[b]. The second tensor counts how often the bucket of each step came before in the round."""
    due = torch.cat([(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in counts])
    order = due.argsort(stable=True)
    bucket = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    turn = torch.cat([torch.arange(n) for n in counts])
    return bucket[order], turn[order]


@functools.lru_cache(maxsize=64)
def epoch_order(total: int, seed: int) -> Tensor:
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))
