"""Embeddings without their padding: the tokens that the mask keeps, one after the other, over memory-mapped shards.

A caption of 20 tokens among 300 takes a fifteenth of the disk. Padding is zero in every encoder's output
(text_encoders/base.py), so nothing is lost.
"""

from typing import Any

import torch
from torch import Tensor

from sanakit.data.rows import Rows
from sanakit.text_encoders import PromptEmbeds


def pack(prompt: PromptEmbeds) -> dict[str, Tensor]:
    """tokens (T, D), mask (N, L) bool, starts (N,) of every prompt's first token in `tokens`."""
    lengths = prompt.mask.sum(1)
    return {
        "tokens": prompt.embeds[prompt.mask],
        "mask": prompt.mask,
        "starts": lengths.cumsum(0) - lengths,
    }


def join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Packed parts as one, further tensors joined row by row."""
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    lengths = joined["mask"].sum(1)
    return joined | {"starts": lengths.cumsum(0) - lengths}


class PackedRows:
    """A tensor (N, L, D) over shards of packed tokens: `rows[indices]` unpacks just those."""

    def __init__(self, shards: dict[str, list[Tensor]], index: Tensor) -> None:
        self.tokens, self.index = shards["tokens"], index
        self.mask = Rows(shards["mask"], index)
        self.starts = Rows(shards["starts"], index)
        self.ends = torch.tensor([len(shard) for shard in shards["mask"]]).cumsum(0)
        self.shape = torch.Size((len(index), shards["mask"][0].shape[1], self.tokens[0].shape[1]))

    def __len__(self) -> int:
        return len(self.index)

    def head(self, count: int) -> "PackedRows":
        """The first `count` rows."""
        shards = {"tokens": self.tokens, "mask": self.mask.shards, "starts": self.starts.shards}
        return PackedRows(shards, self.index[:count])

    @property
    def nbytes(self) -> int:
        return sum(shard.nbytes for shard in self.tokens)

    def __getitem__(self, key: Any) -> Tensor:
        where = torch.arange(len(self))[key]
        rows = where.reshape(-1)
        mask, starts = self.mask[rows], self.starts[rows]
        shard = torch.bucketize(self.index[rows], self.ends, right=True)
        out = torch.zeros(len(rows), *self.shape[1:], dtype=self.tokens[0].dtype)
        lengths = mask.sum(1)
        for number in shard.unique().tolist():
            mine = (shard == number).nonzero()[:, 0]
            counts = lengths[mine]
            begins = starts[mine] - (counts.cumsum(0) - counts)
            places = torch.repeat_interleave(begins, counts) + torch.arange(int(counts.sum()))
            kept = mask & (shard == number)[:, None]
            out[kept] = self.tokens[number][places]
        return out.reshape(where.shape + out.shape[1:])
