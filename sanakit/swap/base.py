"""What a strategy is: how the swapped layers start, and which parameter groups move at which rate."""

from typing import ClassVar

from diffusers import SanaTransformer2DModel

from sanakit.core.dit import group_of
from sanakit.registry import Registry

STRATEGIES: Registry[type["Strategy"]] = Registry("strategies", "sanakit.swap")
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


class Strategy:
    """kinds: the swaps it serves. initialise: "reuse" (the base's joints as they are), "align" (closed form),
    "align-blocks" (closed form of every block), "naive" (fresh joints) or "scratch" (everything fresh). follows_start:
    begins where `train.start` says, instead.

    scales: learning-rate multiplier by parameter group, absent = frozen; the group `lora` holds low-rank adapters of
    every attention, which exist where lora_rank > 0. learning_rate: peak, its own best of a sweep.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    kinds: ClassVar[tuple[str, ...]] = ("vae", "text_encoder")
    initialise: ClassVar[str] = "align"
    follows_start: ClassVar[bool] = False
    scales: ClassVar[dict[str, float]]
    learning_rate: ClassVar[float] = 1e-3
    lora_rank: ClassVar[int] = 0
    teacher: ClassVar[str] = ""  # "trajectories": the loss is the distance to the base on its own trajectories

    @classmethod
    def parameter_groups(cls, core: SanaTransformer2DModel) -> list[dict]:
        """Optimiser groups; every other parameter no longer requires gradients. Adds the low-rank adapters."""
        if cls.lora_rank:
            add_lora(core, cls.lora_rank)
        groups: dict[str, dict] = {}
        for name, parameter in core.named_parameters():
            group = "lora" if ".lora_" in name else group_of(name)
            scale = cls.scales.get(group, 0.0)
            parameter.requires_grad_(scale > 0)
            if scale > 0:
                groups.setdefault(group, {"params": [], "scale": scale, "name": group})["params"].append(parameter)
        return list(groups.values())

    @classmethod
    def finish(cls, core: SanaTransformer2DModel) -> None:
        """Fold the low-rank adapters into the weights: a result is a plain core."""
        if cls.lora_rank:
            core.fuse_lora()
            core.unload_lora()


def add_lora(core: SanaTransformer2DModel, rank: int) -> None:
    """Low-rank adapters (peft) on every attention projection; the output is unchanged until they are trained."""
    from peft import LoraConfig

    core.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS)))
