"""The contract of a strategy: what it states, and which parameters of a core its groups train."""

import torch
from diffusers import SanaTransformer2DModel

from sanakit.core.dit import GROUPS, new_core
from sanakit.strategies.base import STRATEGIES, Strategy
from sanakit.swap.plugins import require_sound
from sanakit.testing.contract import require, resolve

SMALL = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 1,
    "attention_head_dim": 8,
    "num_layers": 2,
    "num_cross_attention_heads": 1,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 8,
    "caption_channels": 8,
    "sample_size": 4,
    "patch_size": 1,
}


def check_strategy(strategy: str | type[Strategy], *, core: SanaTransformer2DModel | None = None) -> None:
    """A registered name or a class keeps the contract of `Strategy` on a core, by default one of two small blocks,
    which is not changed. Raises SK0115."""
    item, name = resolve(strategy, STRATEGIES)
    right = isinstance(item, type) and issubclass(item, Strategy)
    require(right, name, f"{item!r} is no subclass of Strategy", "Derive it from sanakit.strategies.Strategy.")
    require("scales" in dir(item), name, "it states no scales", "scales = {'input': 1.0} names what is trained.")
    require(bool(item.kinds), name, "kinds is empty", 'State kinds = ("vae",), ("text_encoder",) or both.')
    whole = new_core(SMALL, seed=0) if core is None else core
    try:
        require_sound(item, whole)
    except ValueError as error:
        require(False, name, str(error), "docs/adding-a-component.md says what a strategy may state.")
    _check_groups(item, name, whole)


def _check_groups(strategy: type[Strategy], name: str, core: SanaTransformer2DModel) -> None:
    from copy import deepcopy

    tried = deepcopy(core)
    before = _outputs(tried)
    groups = strategy.parameter_groups(tried)
    known = (*GROUPS, "lora")
    for group in groups:
        missing = {"params", "scale", "name"} - group.keys()
        require(not missing, name, f"a group lacks {sorted(missing)}", "A group is {'params', 'scale', 'name'}.")
        fix = f"Names of groups: {', '.join(known)}."
        require(group["name"] in known, name, f"a group is named {group['name']!r}", fix)
        require(bool(group["params"]), name, f"the group {group['name']} is empty", "Leave the group out.")
    trained = [id(parameter) for group in groups for parameter in group["params"]]
    fix = "Put every parameter into one group."
    require(len(trained) == len(set(trained)), name, "a parameter is in two groups", fix)
    asking = {id(parameter) for parameter in tried.parameters() if parameter.requires_grad}
    found = f"{len(asking)} parameters ask for gradients, {len(set(trained))} are in the groups; expected the same ones"
    require(asking == set(trained), name, found, "Call requires_grad_(False) on what is not trained.")
    difference = float((_outputs(tried) - before).abs().max())
    found = f"the core's output moves by {difference:.3g} before any training, expected 0"
    require(difference < 1e-5, name, found, "What is added to the core must be the identity at its start.")
    strategy.finish(tried)
    left = {label for label, _ in tried.named_parameters()} ^ {label for label, _ in core.named_parameters()}
    found = f"after `finish` the core has other parameters than before: {sorted(left)[:3]}"
    require(not left, name, found, "Fold what was added into the weights: a result is a plain core.")


@torch.no_grad()
def _outputs(core: SanaTransformer2DModel) -> torch.Tensor:
    """A core's velocity for seeded noise; its output layer is made non-zero for the time of the call."""
    config, generator = core.config, torch.Generator().manual_seed(0)
    side = config.sample_size
    weight = core.proj_out.weight
    kept = weight.clone()
    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    try:
        return core(
            torch.randn(1, config.in_channels, side, side, generator=generator),
            encoder_hidden_states=torch.randn(1, 3, config.caption_channels, generator=generator),
            timestep=torch.tensor([500.0]),
        ).sample
    finally:
        weight.copy_(kept)
