"""The adapter registry, and the one way a core is rebuilt with other shapes.

An adapter is what joins a component to the core: it fits the core's interface layers to the candidate's spec, and may
put modules of its own in their place, never another forward pass. Where it sits: an input adapter after the noising,
never before it (a learnable map before the noising could collapse the latents, and the loss would still fall).
"""

from typing import Any, ClassVar

import torch
from diffusers import SanaTransformer2DModel

from sanakit.errors import SanakitError
from sanakit.registry import Registry

ADAPTERS: Registry[type["Adapter"]] = Registry("adapters")


class Adapter:
    """kind: "latents" or "tokens", the interface layers that it serves. saves: what was measured of it, for the plan;
    empty where nothing was."""

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    kind: ClassVar[str]
    saves: ClassVar[str] = ""

    @classmethod
    def fit(cls, core: SanaTransformer2DModel, spec: Any, *, seed: int = 0, **geometry: Any) -> SanaTransformer2DModel:
        """A new core whose interface layers have the candidate's shape, drawn anew, with this adapter's modules; every
        tensor whose shape did not change, and every adapter of the other component, is kept."""
        raise NotImplementedError

    @classmethod
    def install(cls, core: SanaTransformer2DModel) -> None:
        """Put this adapter's modules into the core. Its output must not change: they start as the identity."""


def attach(core: SanaTransformer2DModel, name: str, *, seed: int = 0) -> None:
    """Install a registered adapter and write its name on the core, so that it is saved and loaded with it."""
    adapter = ADAPTERS.get(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter.install(core)
    if has_modules(name):
        core.sanakit_adapters = (*adapters_of(core), name)


def has_modules(name: str) -> bool:
    """Whether a registered adapter puts modules of its own into a core, so that the result is not a plain one."""
    return ADAPTERS.get(name).install.__func__ is not Adapter.install.__func__  # type: ignore[attr-defined]


def adapters_of(core: Any) -> tuple[str, ...]:
    """Names of the adapters with modules of their own; empty for a plain core, which other people's tools load."""
    return tuple(vars(core).get("sanakit_adapters", ()))


def rebuild_core(
    core: SanaTransformer2DModel, *, seed: int = 0, adapters: tuple[str, ...] | None = None, **changes: Any
) -> SanaTransformer2DModel:
    """A core of the changed config: tensors of equal name and shape are copied, the others start fresh by `seed`.
    adapters: to install, by default the core's own."""
    rebuilt = fresh_core(core, seed=seed, adapters=adapters, **changes)
    fresh = rebuilt.state_dict()
    kept = {k: v for k, v in core.state_dict().items() if k in fresh and fresh[k].shape == v.shape}
    rebuilt.load_state_dict(kept, strict=False)
    return rebuilt


def fresh_core(
    core: SanaTransformer2DModel, *, seed: int = 0, adapters: tuple[str, ...] | None = None, **changes: Any
) -> SanaTransformer2DModel:
    """A core of the changed config with the same adapters, drawn by `seed`; no tensor is copied."""
    config = {k: v for k, v in core.config.items() if not k.startswith("_")} | changes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rebuilt = SanaTransformer2DModel(**config)
    for name in adapters_of(core) if adapters is None else adapters:
        attach(rebuilt, name, seed=seed)
    return rebuilt


def others(core: SanaTransformer2DModel, kind: str) -> tuple[str, ...]:
    """The core's adapters of the other component."""
    return tuple(name for name in adapters_of(core) if ADAPTERS.get(name).kind != kind)


def adapter_class_of(adapter: str | None, is_vae: bool, candidate: str) -> type[Adapter]:
    """The named adapter, by default the linear one. Raises SK0110 where it joins what the candidate is not."""
    adapter_class = ADAPTERS.get(adapter or ("linear-latents" if is_vae else "linear-caption"))
    if adapter_class.kind != ("latents" if is_vae else "tokens"):
        raise SanakitError(
            "SK0110",
            f"adapter {adapter_class.name} joins {adapter_class.kind}, "
            f"{candidate} is a {'VAE' if is_vae else 'text encoder'}",
        )
    return adapter_class
