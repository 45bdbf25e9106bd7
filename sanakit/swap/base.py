"""What a strategy is: how the swapped layers start, and which parameter groups move at which rate."""

from typing import ClassVar

from torch import nn

from sanakit.core.dit import parameters_by_group
from sanakit.registry import Registry

STRATEGIES: Registry[type["Strategy"]] = Registry("strategies", "sanakit.swap")


class Strategy:
    """initialise: "align" (closed form), "naive" (fresh joints) or "scratch" (everything fresh).

    scales: learning-rate multiplier by parameter group, 0 = frozen. learning_rate: peak, its own best of a sweep.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    initialise: ClassVar[str] = "align"
    scales: ClassVar[dict[str, float]]
    learning_rate: ClassVar[float] = 1e-3

    @classmethod
    def parameter_groups(cls, core: nn.Module) -> list[dict]:
        """Optimiser groups; parameters of groups with scale 0 no longer require gradients."""
        groups = []
        for name, parameters in parameters_by_group(core).items():
            scale = cls.scales.get(name, 0.0)
            for parameter in parameters:
                parameter.requires_grad_(scale > 0)
            if scale > 0:
                groups.append({"params": parameters, "scale": scale, "name": name})
        return groups

    @classmethod
    def finish(cls, core: nn.Module) -> None:
        """After training: back to plain modules, ready for `save_pretrained`."""
