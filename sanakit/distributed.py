"""Ranks, and a stop that all of them agree on; does nothing alone. Imports torch only where several ranks run."""

import functools
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from sanakit.errors import SanakitError

STATED_DEVICE = "ACCELERATE_TORCH_DEVICE"


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


@contextmanager
def rank_folder(folder: Path | None) -> Iterator[Path | None]:
    """Where this rank keeps its run: rank 0 in `folder`; the others in a scratch copy that shares the checkpoints, of
    the race too."""
    if world_size() == 1:
        yield folder
        return
    if folder is None:
        raise SanakitError("SK0104", f"{world_size()} ranks must agree on a run folder", fix="Name one: --run-dir DIR.")
    barrier()
    with tempfile.TemporaryDirectory() as scratch:
        if not is_main():
            for path in folder.glob("*.*"):
                if path.is_file():
                    shutil.copy(path, scratch)
            for shared in ("checkpoints", "race"):
                (Path(scratch) / shared).symlink_to(folder.resolve() / shared)
        barrier()
        yield folder if is_main() else Path(scratch)


def _group() -> Any:
    import torch.distributed as group

    if not group.is_initialized():
        group.init_process_group()
    return group


DATA_STOP = 402  # in the place of a signal's number: too many images cannot be read (SK0402)


class StopRequest:
    """SIGTERM, SIGUSR1 and Ctrl-C as a request: kept while `deferred`, otherwise (or the second time) an exit at
    once."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.number = 0
        self.deferred = False

    def ask(self, number: int) -> None:
        """Stop at the next step border for a reason of the run's own, DATA_STOP, unless a signal came before."""
        self.number = self.number or number

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number or not self.deferred:
            sys.exit(exit_code(number))
        self.number = number

    @contextmanager
    def installed(self) -> Iterator["StopRequest"]:
        self.number = 0
        before = {number: signal.signal(number, self) for number in self.SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.number = 0  # or a caller that goes on would stop at its next step border

    @contextmanager
    def at_step_border(self) -> Iterator[None]:
        before, self.deferred = self.deferred, True
        try:
            yield
        finally:
            self.deferred = before


def exit_code(number: int) -> int:
    """130 for Ctrl-C; 143 for SIGTERM and for SIGUSR1, by which schedulers announce the end of a job."""
    return 130 if number == signal.SIGINT else 143


STOP = StopRequest()


@functools.lru_cache(maxsize=1)
def make_accelerator(precision: str, device: Any) -> Any:
    """accelerate's engine for this process on a torch.device: autocast, and DDP where torchrun started several
    ranks."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    alone, on_cpu = world_size() == 1, device.type == "cpu"
    if AcceleratorState._shared_state:  # another precision earlier in this process, as notebooks and tests do
        AcceleratorState._reset_state(reset_partial_state=alone)
        GradientState._reset_state()
    elif PartialState._shared_state and alone:  # a tracker's
        PartialState._reset_state()
    with _stated_device(None if on_cpu else str(device)):
        return Accelerator(cpu=on_cpu, mixed_precision={"fp32": "no"}.get(precision, precision))


@contextmanager
def _stated_device(name: str | None) -> Iterator[None]:
    """accelerate's own way to be told a device; None leaves it as it is."""
    before = os.environ.get(STATED_DEVICE)
    if name is not None:
        os.environ[STATED_DEVICE] = name
    try:
        yield
    finally:
        if name is not None:
            os.environ.pop(STATED_DEVICE)
        if before is not None:
            os.environ[STATED_DEVICE] = before


def shard(core: Any, groups: list[dict[str, Any]], precision: str, device: Any) -> list[dict[str, Any]]:
    """FSDP2, in place, a unit a block; the optimiser groups with the sharded parameters in the place of the whole ones,
    parameters of other modules as they are.

    By torch itself: accelerate turns FSDP into DDP on a CPU without a word. Timesteps stay in fp32: FSDP's own cast of
    inputs would round them to bf16 (873.2 becomes 872), so the core's inputs are cast here and the time embedding is
    computed first.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    _group()
    core.to(device)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    precisions: dict[str, Any] = {"param_dtype": half, "reduce_dtype": torch.float32 if half else None}
    mesh = init_device_mesh(device.type, (world_size(),))
    names = {id(p): name for name, p in core.named_parameters()}
    for block in core.transformer_blocks:
        fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(**precisions))
    fully_shard(core, mesh=mesh, mp_policy=MixedPrecisionPolicy(**precisions, cast_forward_inputs=False))
    if half is not None:
        core.register_forward_pre_hook(functools.partial(_cast_inputs, dtype=half), with_kwargs=True)
    sharded = dict(core.named_parameters())

    def now(p: Any) -> Any:
        return sharded[names[id(p)]] if id(p) in names else p

    return [group | {"params": [now(p) for p in group["params"]]} for group in groups]


def _cast_inputs(core: Any, args: Any, inputs: dict[str, Any], *, dtype: Any) -> tuple[Any, dict[str, Any]]:
    """Floating inputs of the core by name in the parameters' precision, all but the timestep."""
    import torch

    cast = {
        name: value.to(dtype)
        for name, value in inputs.items()
        if name != "timestep" and isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    return args, inputs | cast


def sum_over_ranks(value: Any, number: int) -> tuple[float, int]:
    """The sum of a scalar tensor, and the largest signal number that any rank received."""
    if world_size() == 1:
        return value.item(), number
    import torch

    both = torch.stack([value.double(), torch.tensor(float(number), device=value.device, dtype=torch.float64)])
    gathered = [torch.empty_like(both) for _ in range(world_size())]
    _group().all_gather(gathered, both)
    table = torch.stack(gathered)
    return float(table[:, 0].sum()), int(table[:, 1].max())


def agreed_figures(loss: Any, norm: Any, number: int) -> tuple[float, float, int]:
    """The sum of a loss over the ranks, the gradient norm that they share, and the largest signal number that any of
    them received. The host waits for the device once."""
    import torch

    if world_size() == 1:
        value, length = torch.stack([loss, norm.to(loss)]).tolist()
        return value, length, number
    local = torch.stack([loss.double(), torch.tensor(float(number), device=loss.device, dtype=torch.float64)])
    gathered = [torch.empty_like(local) for _ in range(world_size())]
    _group().all_gather(gathered, local)
    table = torch.stack(gathered)
    total, length, stop = torch.stack([table[:, 0].sum(), norm.to(local), table[:, 1].max()]).tolist()
    return total, length, int(stop)


def agreed_stop() -> int:
    """The largest signal number that any rank has received, 0 for none; every rank asks."""
    if world_size() == 1:
        return STOP.number
    import torch

    return sum_over_ranks(torch.zeros(()), STOP.number)[1]


def gathered_rows(rows: list[Any]) -> list[Any]:
    """The rows of all ranks, in the order of the ranks; every rank must ask."""
    if world_size() == 1:
        return rows
    every: list[Any] = [None] * world_size()
    _group().all_gather_object(every, rows)
    return [row for local in every for row in local]


def numbers_of_main(values: list[float]) -> list[float]:
    """Rank 0's numbers, on every rank: what was timed differs from rank to rank, and what is decided must not."""
    if world_size() == 1:
        return values
    import torch

    local = torch.tensor(values, dtype=torch.float64)
    gathered = [torch.empty_like(local) for _ in range(world_size())]
    _group().all_gather(gathered, local)
    return [float(value) for value in gathered[0]]


def local(tensor: Any) -> Any:
    """This rank's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Any) -> Any:
    """A sharded tensor gathered (every rank must ask); any other tensor as it is. On the CPU."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().cpu()


def copy_into(target: Any, value: Any) -> None:
    """Write a whole tensor into a parameter or optimiser slot, sharded or not."""
    import torch

    with torch.no_grad():
        if hasattr(target, "device_mesh"):
            from torch.distributed.tensor import distribute_tensor

            value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
        target.copy_(value)
