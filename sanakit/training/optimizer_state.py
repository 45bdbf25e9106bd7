"""An optimiser's moments and counts by parameter name, out of it and back into it."""

from typing import Any

import torch
from torch import Tensor, nn

from sanakit.distributed import copy_into
from sanakit.training.loop import TrainState


def optimizer_slots(core: nn.Module, state: TrainState) -> dict[str, dict[str, Any]]:
    """Moments and counts by parameter name; tensors, and plain numbers where an optimiser keeps those."""
    names = {id(p): name for name, p in core.named_parameters()}
    return {names[id(p)]: dict(slots) for p, slots in state.optimizer.state.items()}


def fill_optimizer(core: nn.Module, state: TrainState, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    parameters = dict(core.named_parameters())
    for key, value in tensors.items():
        name, slot = key.rsplit(":", 1)
        parameter = parameters[name]
        if hasattr(parameter, "device_mesh") and not hasattr(value, "device_mesh") and value.shape == parameter.shape:
            target = torch.zeros_like(parameter, requires_grad=False)
            copy_into(target, value)
            value = target
        state.optimizer.state[parameter][slot] = value.to(parameter.device).clone()
    for name, slots in numbers["slots"].items():
        state.optimizer.state[parameters[name]].update(slots)
    for group, step in zip(state.optimizer.param_groups, numbers["steps"], strict=True):
        if step is not None:
            group["step"] = step
