"""From base and candidate: which parameter groups keep, align, re-initialise, train, with shapes and counts."""

from collections.abc import Sequence
from typing import Any

from diffusers import SanaTransformer2DModel

from sanakit.adapters import adapters_of, fresh_core, rebuild_core
from sanakit.adapters.base import adapter_class_of
from sanakit.alignment import align_blocks, align_caption, align_input, align_output, carry_rest, pair_captions
from sanakit.alignment.blocks import DRAWS
from sanakit.assembly import LatentDiffusion
from sanakit.core.dit import GROUPS, group_of, parameters_by_group, start_small
from sanakit.data.dataset import LatentDataset
from sanakit.errors import SanakitError
from sanakit.flow import swapped_shift
from sanakit.strategies.base import STRATEGIES, Strategy, strategy_named
from sanakit.swap.distill import embedding_mse
from sanakit.text_encoders import TextEncoder
from sanakit.vaes import VAE

NOT_TRAINED = "not trained (--controls)"
ALIGNED = 4096  # images that the closed form of the input reads


def swap_core(
    base: LatentDiffusion, candidate: VAE | TextEncoder, seed: int, adapter: str | None = None
) -> SanaTransformer2DModel:
    """The base's core with the interface layers that the candidate needs, freshly initialised. adapter: a registered
    name, by default the linear one. Raises SK0110 with both sides' numbers for a swap that cannot be built."""
    is_vae = isinstance(candidate, VAE)
    adapter_class = adapter_class_of(adapter, is_vae, candidate.name)
    check_geometry(base, candidate)
    geometry: dict[str, int] = {}
    if is_vae:
        geometry = {"base_ratio": base.vae.spec.spatial_compression_ratio, "image_size": base.image_size}
    return adapter_class.fit(base.core, candidate.spec, seed=seed, **geometry)


def check_geometry(base: LatentDiffusion, candidate: VAE | TextEncoder) -> None:
    """Raises SK0110, with both sides' numbers, for a VAE whose cells do not fit into the base's tokens."""
    if not isinstance(candidate, VAE):
        return
    cell_size, ratio = candidate.spec.spatial_compression_ratio, base.vae.spec.spatial_compression_ratio
    cell = ratio * base.core.config.patch_size
    if base.image_size % cell_size:
        raise SanakitError("SK0110", f"{base.image_size} px do not divide by ratio {cell_size} of {candidate.name}")
    if cell_size < cell and cell % cell_size:
        raise SanakitError(
            "SK0110",
            f"tokens of the base are {cell} px wide (ratio {ratio} x patch {base.core.config.patch_size}), "
            f"{candidate.name} has cells of {cell_size} px: no whole patch covers a token",
        )


def misfit(base: LatentDiffusion, candidate: VAE | TextEncoder) -> str:
    """Why the base's interface layers cannot take the candidate as they are; empty where they can."""
    if isinstance(candidate, VAE):
        old, new = base.vae.spec, candidate.spec
        return (
            ""
            if old == new
            else f"the base's interface layers read {old.label} latents, {candidate.name} gives {new.label}"
        )
    width, given = base.core.config.caption_channels, candidate.spec.embed_dim
    return "" if width == given else f"the base's caption layers read {width} channels, {candidate.name} gives {given}"


def shift_after(base: LatentDiffusion, candidate: VAE | TextEncoder) -> float:
    """Flow shift of training and sampling after the swap: the base's own,
    scaled by the size of the candidate's latents."""
    base_shift = float(base.flow_shift or 1.0)
    if not isinstance(candidate, VAE):
        return base_shift
    return swapped_shift(base_shift, base.latent_shape, candidate.spec.shape(base.image_size, base.image_size))


def applicable(names: Sequence[str], base: LatentDiffusion, candidate: VAE | TextEncoder) -> list[str]:
    """The strategies among `names` that serve this kind of swap; `reuse` only where every shape fits."""
    kind = "vae" if isinstance(candidate, VAE) else "text_encoder"
    serve = [name for name in names if kind in STRATEGIES.get(name).kinds]
    return [n for n in serve if STRATEGIES.get(n).initialise != "reuse" or not misfit(base, candidate)]


def build(
    base: LatentDiffusion,
    candidate: VAE | TextEncoder,
    strategy: type[Strategy],
    data: LatentDataset,
    base_data: LatentDataset,
    *,
    seed: int,
    input_method: str = "blend",
    adapter: str | None = None,
    draws: int = DRAWS,
) -> tuple[LatentDiffusion, dict[str, object]]:
    """The swapped system as a strategy starts it, and what its alignment says: R^2, pairing, notes.

    data and base_data hold the same images in the candidate's and the base's own latents and embeddings. draws: that
    align-blocks is solved from. Raises
    SK0110 for a strategy that cannot serve this swap.
    """
    is_vae = isinstance(candidate, VAE)
    if ("vae" if is_vae else "text_encoder") not in strategy.kinds:
        raise SanakitError("SK0110", f"strategy {strategy.name} serves swaps of {' and '.join(strategy.kinds)} only")
    if strategy.initialise == "reuse":
        if reason := misfit(base, candidate):
            raise SanakitError("SK0110", f"strategy reuse: {reason}")
        core = rebuild_core(base.core)
    elif strategy.initialise == "scratch":
        core = fresh_core(swap_core(base, candidate, seed, adapter), seed=seed)
        start_small(core)
    else:
        core = swap_core(base, candidate, seed, adapter)
    system = LatentDiffusion(
        vae=candidate if is_vae else base.vae,
        text_encoder=base.text_encoder if is_vae else candidate,
        core=core,
        image_size=base.image_size,
        flow_shift=shift_after(base, candidate),
        placement=base.placement,
    )
    if strategy.initialise not in ("align", "align-blocks", "embedding-mse"):
        return system, {}
    blocks = strategy.initialise == "align-blocks"
    if is_vae:
        options: dict[str, Any] = {"method": input_method, "flow_shift": shift_after(base, candidate), "count": ALIGNED}
        scores = align_input(core, base.core, data.latents, base_data.latents, **options)
        if blocks:
            return system, scores | align_blocks(system, base, data, base_data, swapped="vae", draws=draws, seed=seed)
        scores |= carry_rest(core, base, data, base_data, count=ALIGNED, seed=seed)
        return system, scores | align_output(system, data, seed=seed)
    sides = data.texts, system.text_encoder, base.text_encoder, base_data.texts
    captions = pair_captions(data.captions, base_data.captions, *sides)
    layers = (base.core.caption_projection, base.core.caption_norm)
    with base.placement.holding(core.caption_projection, core.caption_norm, *layers):
        scores = align_caption(core, base.core, captions, nulls=(system.null, base.null))
        if strategy.initialise == "embedding-mse":
            scores |= embedding_mse(core, base.core, captions, seed=seed)
    if blocks:
        scores |= align_blocks(system, base, data, base_data, swapped="text_encoder", draws=draws, seed=seed)
    return system, scores


def describe_plan(
    base: LatentDiffusion,
    candidate: VAE | TextEncoder,
    core: SanaTransformer2DModel,
    strategies: Sequence[str] = (),
    resting: Sequence[str] = (),
) -> dict[str, Any]:
    """plan.json: what happens to each parameter group, with shapes and counts, under each strategy, and what else a
    swap touches. resting: names of controls that are not trained."""
    is_vae = isinstance(candidate, VAE)
    before, after = parameters_by_group(base.core), parameters_by_group(core)
    actions = {"input": "align", "output": "align"} if is_vae else {"caption": "align linear_1, keep the rest"}
    old, new = base.core.config, core.config
    notes = {
        "input": f"{old.in_channels} channels x patch {old.patch_size} -> {new.in_channels} x patch {new.patch_size}",
        "output": f"{old.out_channels} channels -> {new.out_channels}",
        "caption": f"{old.caption_channels} -> {new.caption_channels} channels",
    }
    groups = [
        {
            "group": group,
            "action": actions.get(group, "keep"),
            "parameters": sum(p.numel() for p in after[group]),
            "parameters_before": sum(p.numel() for p in before[group]),
            "note": notes.get(group, "") if group in actions else "",
            "shapes": changed_shapes(base.core, core, group),
        }
        for group in GROUPS
    ]
    interface = [group for group in GROUPS if group in actions]
    return {
        "kind": "vae" if is_vae else "text_encoder",
        "adapters": list(adapters_of(core)),
        "groups": groups,
        "strategies": {
            name: strategy_plan(strategy_named(name), interface, raced=name not in resting) for name in strategies
        },
        "notes": _vae_remarks(base, candidate, core) if isinstance(candidate, VAE) else _text_remarks(base, candidate),
    }


def changed_shapes(base_core: SanaTransformer2DModel, core: SanaTransformer2DModel, group: str) -> list[dict[str, Any]]:
    """Tensors of a group whose shape is not the base's: {name, before, after}, None where there is no such tensor."""
    old, new = (
        {name: list(p.shape) for name, p in c.named_parameters() if group_of(name) == group} for c in (base_core, core)
    )
    rows = [{"name": n, "before": old.get(n), "after": new.get(n)} for n in sorted(old.keys() | new.keys())]
    return [row for row in rows if row["before"] != row["after"]]


def strategy_plan(strategy: type[Strategy], interface: Sequence[str], *, raced: bool = True) -> dict[str, str]:
    """Of every group: how it starts, then at which multiple of the learning rate it is trained. interface: the groups
    that the swap touches. raced: False for a control that is not trained."""
    starts = {
        "reuse": "keep",
        "align": "align",
        "align-blocks": "align",
        "naive": "re-initialise",
        "scratch": "re-initialise",
    }
    plan = {}
    for group in GROUPS:
        touched = group in interface or strategy.initialise == "scratch"
        rate = strategy.scales.get(group, 0.0)
        parts = [starts.get(strategy.initialise, strategy.initialise) if touched else "keep"]
        if strategy.initialise == "align-blocks" and group in ("core", "cross_attention"):
            parts = ["solve output layers"]
        if rate:
            parts.append(f"train x{rate:g}" if raced else NOT_TRAINED)
        if strategy.lora_rank and group in ("core", "cross_attention"):
            parts.append(f"LoRA rank {strategy.lora_rank}")
        plan[group] = ", ".join(parts)
    return plan


def _vae_remarks(base: LatentDiffusion, candidate: VAE, core: SanaTransformer2DModel) -> list[str]:
    old, new, size = base.core.config.patch_size, core.config.patch_size, base.image_size
    cells = base.vae.spec.spatial_compression_ratio * old, candidate.spec.spatial_compression_ratio * new
    grids = [f"{size // cell} x {size // cell}" for cell in cells]
    remarks = []
    if cells[0] < cells[1]:
        remarks.append(
            f"token grid {grids[0]} -> {grids[1]}, coarser: the base's patches are average-pooled for alignment, which "
            "lowers their noise; features have to be relearnt more than on an equal grid"
        )
    elif cells[0] > cells[1]:
        remarks.append(
            f"token grid {grids[0]} -> {grids[1]}, finer: each of the base's patches is repeated for alignment"
        )
    elif old != new:
        remarks.append(f"token grid {grids[0]} stays: patch {old} -> {new} makes up for the ratio")
    shift = shift_after(base, candidate)
    change = (
        "the base's own, as both have as many values per image"
        if shift == base.flow_shift
        else "the base's own times the square root of the ratio of values per image"
    )
    remarks.append(f"flow shift {base.flow_shift:.3g} -> {shift:.3g}, {change}; training and sampling share it")
    remarks.append(
        f"latents {base.vae.spec.label} -> {candidate.spec.label}; sigma means noise in the candidate's own latents"
    )
    return remarks + [f"the config of {vae.name} {note}" for vae in (base.vae, candidate) for note in vae.notes]


def _text_remarks(base: LatentDiffusion, candidate: TextEncoder) -> list[str]:
    lengths = base.text_encoder.spec.max_tokens, candidate.spec.max_tokens
    remarks = ["the null embedding is recomputed with the candidate (empty prompt, no instruction)"]
    if lengths[0] != lengths[1]:
        remarks.append(f"tokens a prompt {lengths[0]} -> {lengths[1]}: cross-attention reads any number of them")
    remarks.append(f"flow shift stays {base.flow_shift:.3g}: the latents are the base's")
    if candidate.quantised:
        remarks.append(
            f"the weights of {candidate.name} are {candidate.quantised}: the numbers that they stand for are computed "
            "with, in the memory of weights that are not quantised"
        )
    pairs = [e.offsets(["a red apple"]) is not None for e in (base.text_encoder, candidate)]
    remarks.append(
        "tokens of both sides are paired by character offsets for alignment"
        if all(pairs)
        else f"no offsets of {'the base' if not pairs[0] else candidate.name}: mean tokens are aligned, not single ones"
    )
    return remarks
