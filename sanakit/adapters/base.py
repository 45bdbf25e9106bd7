"""The adapter registry, and the one way a core is rebuilt with other shapes.

An adapter is a function `(core, spec) -> core` that returns a new core whose joint fits the candidate's spec; every
tensor whose shape did not change keeps its values. Where it sits: the input adapter after the noising, never before
it (a learnable map before the noising could collapse the latents, and the loss would look wonderful).
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import SanaTransformer2DModel

from sanakit.registry import Registry

ADAPTERS: Registry[Callable[[SanaTransformer2DModel, Any], SanaTransformer2DModel]] = Registry(
    "adapters", "sanakit.adapters"
)


def rebuild_core(core: SanaTransformer2DModel, *, seed: int = 0, **changes: Any) -> SanaTransformer2DModel:
    """A core of the changed config: tensors of equal name and shape are copied, the others start fresh by `seed`."""
    config = {k: v for k, v in core.config.items() if not k.startswith("_")} | changes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rebuilt = SanaTransformer2DModel(**config)
    own = rebuilt.state_dict()
    kept = {k: v for k, v in core.state_dict().items() if own[k].shape == v.shape}
    rebuilt.load_state_dict(kept, strict=False)
    return rebuilt
