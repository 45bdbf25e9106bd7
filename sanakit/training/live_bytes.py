"""Bytes that are alive while fake tensors are computed with: the memory of a forward and backward pass that never runs.

Fake tensors (torch's FakeTensorMode) have shapes, dtypes and storages but no memory. `LiveBytes` sees every operator,
counts the storages of its results and takes them off again when the last tensor on them is gone: what a device's
allocator holds, without its rounding, kernels' scratch memory and fragmentation.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class LiveBytes(TorchDispatchMode):
    """now: bytes alive. peak: the most since the last `restart`. flops: floating-point operations of products and
    convolutions so far, by torch's own formulas. Use it inside a FakeTensorMode."""

    def __init__(self, *modules: nn.Module) -> None:
        """modules: whose parameters and buffers are alive already."""
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._sizes: dict[int, int] = {}
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self._add(tensor)

    def restart(self) -> int:
        """The peak so far; a new one begins."""
        peak, self.peak = self.peak, self.now
        return peak

    def _add(self, tensor: Any) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            self._add(tensor)
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=results)
        return results


def as_meta(module: nn.Module) -> dict[int, nn.Parameter]:
    """Put parameters and buffers on the meta device in place; what each parameter (by its id before) has become."""
    return _exchange(module, lambda t: torch.empty_like(t, device="meta"))


def as_fake(module: nn.Module, mode: FakeTensorMode, dtype: torch.dtype | None = None) -> dict[int, nn.Parameter]:
    """The same with fake tensors of the CPU; floating ones in `dtype`, where it is given."""

    def make(tensor: Tensor) -> Tensor:
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        with mode:
            return torch.empty(tuple(tensor.shape), dtype=wanted)

    return _exchange(module, make)


def _exchange(module: nn.Module, make: Callable[[Tensor], Tensor]) -> dict[int, nn.Parameter]:
    made: dict[int, nn.Parameter] = {}
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in made:  # tied ones stay tied
                    made[id(parameter)] = nn.Parameter(make(parameter), requires_grad=parameter.requires_grad)
                part._parameters[name] = made[id(parameter)]
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = make(buffer)
    return made
