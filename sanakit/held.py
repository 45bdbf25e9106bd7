"""A module whose tensors are on a device for a while, in another precision where one is asked for, and come back."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Held:
    """A module whose tensors are on the device; where each of them was, and its version there."""

    def __init__(self, module: "torch.nn.Module") -> None:
        self.module, self.count = module, 0
        self.moved: list[tuple[torch.Tensor, torch.Tensor, int]] = []

    def move(self, device: "torch.device", dtype: "torch.dtype | None") -> None:
        """dtype: of what a checkpoint holds; None keeps all as it is."""
        import torch

        inner = getattr(self.module, "model", self.module)  # a component's statistics stay with its callers
        computed = computed_buffers(inner)
        with torch.no_grad():
            for tensor in [*inner.parameters(), *inner.buffers()]:
                cast = dtype is not None and tensor.is_floating_point() and id(tensor) not in computed
                wanted = dtype if cast else tensor.dtype
                if tensor.device.type != "cpu" or (same_device(tensor.device, device) and wanted == tensor.dtype):
                    continue
                home = tensor.data
                tensor.data = home.to(device=device, dtype=wanted)
                self.moved.append((tensor, home, tensor._version))

    def restore(self) -> None:
        import torch

        with torch.no_grad():
            for tensor, home, version in self.moved:
                if tensor._version != version:
                    home.copy_(tensor.data)
                tensor.data = home
        self.moved = []


def computed_buffers(module: "torch.nn.Module") -> set[int]:
    """Identities of the buffers that a model computes for itself, such as the frequencies of rotary positions. No
    checkpoint holds them, so one that is loaded in half precision has them in single precision."""
    return {id(part._buffers[name]) for part in module.modules() for name in part._non_persistent_buffers_set}


def same_device(first: "torch.device", second: "torch.device") -> bool:
    """Equal kinds and numbers; no number is the first."""
    return first.type == second.type and (first.index or 0) == (second.index or 0)
