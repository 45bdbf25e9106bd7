"""Ranks, and a stop that all of them agree on; does nothing alone. Imports torch only where several ranks run."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def rank() -> int:
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def world_size() -> int:
    """Processes that torchrun started; 1 alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        _group().barrier()


def agree(value: int) -> int:
    """The largest value of any rank: a signal that one rank received is a signal to all."""
    if world_size() == 1:
        return value
    import torch

    tensor = torch.tensor([value], device="cuda" if torch.cuda.is_available() else "cpu")
    group = _group()
    group.all_reduce(tensor, op=group.ReduceOp.MAX)
    return int(tensor)


def _group() -> Any:
    import torch.distributed as group

    if not group.is_initialized():
        group.init_process_group()
    return group


class StopRequest:
    """SIGTERM, SIGUSR1 and Ctrl-C as a request: kept while `deferred`, otherwise (or the second time) an exit at once."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.number = 0
        self.deferred = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number or not self.deferred:
            sys.exit(exit_code(number))
        self.number = number

    @contextmanager
    def installed(self) -> Iterator["StopRequest"]:
        before = {number: signal.signal(number, self) for number in self.SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_step_border(self) -> Iterator[None]:
        self.deferred = True
        try:
            yield
        finally:
            self.deferred = False


def exit_code(number: int) -> int:
    """130 for Ctrl-C; 143 for SIGTERM and for SIGUSR1, by which schedulers announce the end of a job."""
    return 130 if number == signal.SIGINT else 143


STOP = StopRequest()
