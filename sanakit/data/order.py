"""Which images a step sees: a function of (seed, step) alone, so nothing has to be kept to resume mid-epoch.

Every epoch is one permutation (of a very large data set one of blocks and one within each), cut into consecutive
batches across epoch borders. With aspect-ratio buckets each bucket
has such a stream of its own; a fixed round of batches serves every bucket in proportion to its images.
"""

import functools
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

WHOLE = 1_000_000  # images up to which an epoch is one permutation
BLOCK = 65_536


def batch_indices(total: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Image indices of a step: consecutive slices of one permutation an epoch, across epoch borders."""
    start = step * batch_size
    parts, needed = [], batch_size
    while needed:
        epoch, offset = divmod(start, total)
        parts.append(epoch_slice(total, seed * 7_919 + epoch, offset, needed))
        start += len(parts[-1])
        needed -= len(parts[-1])
    return torch.cat(parts)


def epoch_slice(total: int, seed: int, offset: int, needed: int) -> Tensor:
    """At most `needed` images of an epoch's order, from `offset` on. Of more than WHOLE images the order is one of
    blocks, and one within each block, so that nothing of the size of the data set is made."""
    if total <= WHOLE:
        return epoch_order(total, seed)[offset : offset + needed]
    blocks = epoch_order(-(-total // BLOCK), seed)
    sizes = torch.where(blocks == blocks.max(), total - int(blocks.max()) * BLOCK, BLOCK)
    ends = sizes.cumsum(0)
    place = int(torch.searchsorted(ends, offset, right=True))
    block = int(blocks[place])
    within = offset - int(ends[place] - sizes[place])
    order = epoch_order(int(sizes[place]), hash_seed(seed, block))
    return block * BLOCK + order[within : within + needed]


def hash_seed(seed: int, block: int) -> int:
    """A seed of its own for each block of each epoch; a CPU generator reads 32 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed} {block}".encode()).digest()[:4])


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
