"""Work that the ranks of a run share: each does a part of the items, and all go on with what everyone found.

Only a run that sanakit itself began on every rank shares its work (`ranks_share`): another program under torchrun may
call the same functions on one rank alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sanakit.distributed import gathered_rows, rank, world_size
from sanakit.errors import SanakitError
from sanakit.tracebacks import describe

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Sharing:
    """on: the ranks of this process's run share. busy: inside shared work, where further work is each rank's own."""

    on = False
    busy = False


@contextmanager
def ranks_share(wanted: bool = True) -> Iterator[None]:
    """Within, `shared` deals out its items; every rank must call it with the same ones, in the same order."""
    before, _Sharing.on = _Sharing.on, wanted and world_size() > 1
    try:
        yield
    finally:
        _Sharing.on = before


@contextmanager
def alone() -> Iterator[None]:
    """Within, every rank computes what it is asked by itself: it takes its turn over larger pieces."""
    before, _Sharing.busy = _Sharing.busy, True
    try:
        yield
    finally:
        _Sharing.busy = before


def is_shared() -> bool:
    """Whether `shared` would deal its items out now."""
    return _Sharing.on and not _Sharing.busy


def shared(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
    """`work` of all items, in their order, the same on every rank.

    work: some neighbouring items to as many results, on the CPU. It is given whole items, so that what is dealt out is
    computed as one rank alone computes it, bit for bit. Every rank works on as many items, the last one repeated where
    they do not divide, so that a sharded module may run inside. Raises what `work` raises; on the other ranks SK0516.
    """
    if not is_shared() or not items:
        return list(work(items))
    share = -(-len(items) // world_size())
    first = rank() * share
    mine = [items[min(place, len(items) - 1)] for place in range(first, first + share)]
    results: list[Any] = []
    failure: Exception | None = None
    try:
        with alone():
            results = list(work(mine))[: max(0, len(items) - first)]
    except Exception as error:  # whatever it is, the others wait in the collective below
        failure = error
    told = describe(failure) if failure is not None and not isinstance(failure, SanakitError) else ""
    told = failure.found if isinstance(failure, SanakitError) else told
    gathered = gathered_rows([(rank(), told, results)])
    if failure is not None:
        raise failure
    for number, reason, _ in gathered:
        if reason:
            raise SanakitError("SK0516", f"rank {number}: {reason}")
    return [result for _, _, part in gathered for result in part]


def shared_chunks(rows: Any, size: int, work: Callable[[Any], Any]) -> Any:
    """`work` of every `size` rows of a tensor, joined: (N, ...) to (N, ...), on the CPU."""
    import torch

    return torch.cat(shared(rows.split(size), lambda chunks: [work(chunk).cpu() for chunk in chunks]))


def of_main(value: Item) -> Item:
    """Rank 0's, on every rank: what is chosen by the memory or the disk that is free must not differ."""
    return gathered_rows([value])[0] if is_shared() else value


def all_ranks(value: bool) -> bool:
    """Whether it is so on every rank: where each reads its own cache, what is done must not differ."""
    return all(gathered_rows([value])) if is_shared() else value
