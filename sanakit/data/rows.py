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
        rest = tuple(r.expand(len(flat)) if isinstance(r, Tensor) else r for r in rest)
        shard = torch.bucketize(flat, self.ends, right=True)
        numbers = shard.unique().tolist()
        out: Tensor | None = None
        for number in numbers or [0]:
            mine = (shard == number).nonzero()[:, 0]
            start = int(self.ends[number]) - len(self.shards[number])
            part = select(
                self.shards[number], flat[mine] - start, *(r[mine] if isinstance(r, Tensor) else r for r in rest)
            )
            if len(numbers) < 2:
                out = part
                break
            out = part.new_empty((len(flat), *part.shape[1:])) if out is None else out
            out[mine] = part
        assert out is not None
        return self.finish(out).reshape(where.shape + out.shape[1:])

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.shards[0].element_size()


def select(shard: Tensor, rows: Tensor, *rest: Any) -> Tensor:
    """shard[rows, *rest]: whole rows, or one view of each, are copied as they lie, and nothing else is read."""
    if not rest:
        return shard.index_select(0, rows)
    views = shard.shape[1] if shard.ndim > 1 else 0
    if len(rest) == 1 and isinstance(rest[0], Tensor | int) and shard.is_contiguous():
        return shard.flatten(0, 1).index_select(0, rows * views + rest[0] % views)
    return shard[(rows, *rest)]
