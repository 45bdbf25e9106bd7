"""Low-rank adapters (LoRA, arXiv 2106.09685) in every attention, through peft; merged into plain layers at the end."""

from typing import ClassVar

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from sanakit.core.dit import group_of
from sanakit.swap.base import STRATEGIES, Strategy

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@STRATEGIES.register("lora", title="closed form, then the joints and low-rank adapters in attention", embedded=True)
class LoRA(Strategy):
    """The blocks keep their weights; scales of `cross_attention` and `core` are those of the adapters in them."""

    initialise = "align"
    scales = {"input": 1.0, "output": 1.0, "caption": 1.0, "cross_attention": 1.0, "core": 1.0}
    learning_rate = 2e-3
    rank: ClassVar[int] = 16

    @classmethod
    def parameter_groups(cls, core: nn.Module) -> list[dict]:
        """Adds the adapters (their draw is fixed), freezes what they adapt, and groups what moves."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            inject_adapter_in_model(LoraConfig(r=cls.rank, lora_alpha=cls.rank, target_modules=TARGETS), core)
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in core.named_parameters():
            group = group_of(name)
            trained = cls.scales.get(group, 0.0) > 0 and (group not in ("cross_attention", "core") or "lora_" in name)
            parameter.requires_grad_(trained)
            if trained:
                groups.setdefault(group, []).append(parameter)
        return [{"params": params, "scale": cls.scales[name], "name": name} for name, params in groups.items()]

    @classmethod
    def finish(cls, core: nn.Module) -> None:
        for name, module in list(core.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge()
                core.set_submodule(name, module.get_base_layer())
