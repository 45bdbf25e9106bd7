"""What a strategy is: how the swapped layers start, and which parameter groups move at which rate."""

from typing import ClassVar

from diffusers import SanaTransformer2DModel

from sanakit.core.dit import group_of
from sanakit.registry import Registry

STRATEGIES: Registry[type["Strategy"]] = Registry("strategies")
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


class Strategy:
    """kinds: the swaps it serves. initialise: "reuse" (the base's interface layers as they are), "align" (closed form),
    "align-blocks" (closed form of every block), "naive" (fresh interface layers) or "scratch" (everything fresh).
    follows_start: begins where `train.start` says, instead.

    scales: learning-rate multiplier by parameter group, absent = frozen; the group `lora` holds low-rank adapters of
    every attention, which exist where lora_rank > 0. learning_rate: peak, its own best of a sweep on embedded cores;
    text_learning_rate: the same with another text encoder, where that is measured to be another (a race finds it).

    control: shows what a swap without knowledge would do; it races with `smoke.controls`, and is evaluated before any
    step otherwise. adapter: joins the candidate instead of the linear layers, empty for those.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    kinds: ClassVar[tuple[str, ...]] = ("vae", "text_encoder")
    initialise: ClassVar[str] = "align"
    follows_start: ClassVar[bool] = False
    scales: ClassVar[dict[str, float]]
    learning_rate: ClassVar[float] = 1e-3
    text_learning_rate: ClassVar[float | None] = None
    lora_rank: ClassVar[int] = 0
    control: ClassVar[bool] = False
    adapter: ClassVar[str] = ""
    teacher: ClassVar[str] = ""  # "trajectories": the loss is the distance to the base on its own trajectories

    @classmethod
    def start_key(cls) -> tuple[str, str]:
        """What the core before any step depends on: strategies of an equal pair start alike."""
        return cls.initialise, cls.adapter

    @classmethod
    def unraced_rate(cls, kind: str) -> float:
        """The peak where no race has chosen one. kind: of the swap, "vae" or "text_encoder"."""
        rate = cls.text_learning_rate if kind == "text_encoder" else None
        return cls.learning_rate if rate is None else rate

    @classmethod
    def scope(cls) -> str:
        """What it trains, as the forecast's law knows it (SCOPES of swap/slope_law.py)."""
        if cls.control:
            return cls.initialise
        if cls.teacher:
            return "teacher"
        groups = {"core": "core", "lora": "lora", "cross_attention": "cross-attention"}
        return next((scope for group, scope in groups.items() if group in cls.scales), "interface")

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


def joined_by(strategy: type[Strategy], adapter: str) -> type[Strategy]:
    """The strategy with another adapter than the linear layers, named STRATEGY@ADAPTER; as it is for an empty name."""
    if not adapter:
        return strategy
    changes = {
        "name": f"{strategy.name}@{adapter}",
        "title": f"{strategy.title}; joined by {adapter}",
        "adapter": adapter,
    }
    return type(strategy.__name__, (strategy,), changes)


def strategy_named(name: str) -> type[Strategy]:
    """A registered strategy, or STRATEGY@ADAPTER. Raises SK0101."""
    plain, _, adapter = name.partition("@")
    return joined_by(STRATEGIES.get(plain), adapter)


def add_lora(core: SanaTransformer2DModel, rank: int) -> None:
    """Low-rank adapters (peft) on every attention projection; the output is unchanged until they are trained."""
    from peft import LoraConfig

    core.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS)))
