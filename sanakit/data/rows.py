"""A tensor over memory-mapped shards that is read by row."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Rows:
    """A tensor (N, ...) over memory-mapped shards: `rows[indices]`, `rows[indices, view]`, `rows[:n, 0]` read and
    finish just those rows."""

    def __init__(self, shards: list[Tensor], index: Tensor, finish: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        self.shards, self.index, self.finish = shards, index, finish
        self.ends = torch.tensor([len(s) for s in shards]).cumsum(0)
        self.shape = torch.Size((len(index), *shards[0].shape[1:]))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> Tensor:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        where = self.index[first]
        flat = where.reshape(-1)
        shard = torch.bucketize(flat, self.ends, right=True)
        out = torch.empty((len(flat), *self.shape[1:]), dtype=self.shards[0].dtype)
        for number in shard.unique().tolist():
            mine = (shard == number).nonzero()[:, 0]
            start = int(self.ends[number]) - len(self.shards[number])
            out[mine] = self.shards[number][flat[mine] - start]
        if rest:
            each = torch.arange(len(flat)) if any(isinstance(r, Tensor) for r in rest) else slice(None)
            out = out[(each, *rest)]
        return self.finish(out).reshape(where.shape + out.shape[1:])

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.shards[0].element_size()
