"""From base and candidate: which parameter groups keep, align, re-initialise, with shapes and counts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import SanaTransformer2DModel

from sanakit.adapters import ADAPTERS, rebuild_core
from sanakit.alignment import align_caption, align_input, align_output
from sanakit.assembly import LatentDiffusion
from sanakit.core.dit import GROUPS, load_core, new_core, parameters_by_group
from sanakit.data.base import cache_dir
from sanakit.data.cache import LatentDataset
from sanakit.errors import SanakitError, did_you_mean
from sanakit.interop.folder import INDEX, load_base_encoder, pipeline_card
from sanakit.interop.hub import download
from sanakit.interop.native import converted
from sanakit.swap.base import STRATEGIES, Strategy
from sanakit.text_encoders import TextEncoder
from sanakit.vaes import VAE, load_vae

CORES = Path(__file__).parent.parent / "assets" / "cores"
ALIGNED = 2048  # pictures that the closed form of the input reads


@dataclass(frozen=True, kw_only=True)
class Base:
    """A working model on disk: folder of the core, card with VAE, text encoder, picture size and flow shift."""

    name: str
    folder: Path
    card: dict[str, Any]

    def system(self, vae: VAE | None = None, text_encoder: TextEncoder | None = None) -> LatentDiffusion:
        return LatentDiffusion(
            vae=vae or load_vae(self.card["vae"], scaling_factor=self.card.get("scaling_factor")),
            text_encoder=text_encoder or load_base_encoder(self.card["text_encoder"], self.folder),
            core=load_core(self.folder),
            image_size=self.card["image_size"],
            flow_shift=self.card["flow_shift"],
        )


def load_base(name: str) -> Base:
    """An embedded core by name; `path:` a folder as `full` writes it, a diffusers pipeline folder, or a native Sana
    `.pth` that was converted with leave; `hub:` a pipeline repository. Raises SK0101, SK0106, SK0601 or SK0603."""
    scheme, _, rest = name.partition(":")
    folder = Path(rest).expanduser() if scheme == "path" else CORES / name
    if scheme == "hub":
        folder = download(rest)
        return Base(name=name, folder=folder / "transformer", card=pipeline_card(name, folder))
    if scheme == "path" and (folder / INDEX).is_file():
        return Base(name=name, folder=folder / "transformer", card=pipeline_card(f"path:{folder}", folder))
    if scheme == "path" and folder.is_file():
        folder = converted(folder, cache_dir(), allow_pickle=False)
    if scheme != "path" and not (folder / "card.json").is_file():
        known = sorted(p.name for p in CORES.iterdir())
        raise SanakitError("SK0101", f"no base named {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        missing = {"vae", "text_encoder", "image_size", "flow_shift"} - card.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise SanakitError("SK0106", f"{folder / 'card.json'}: {error}") from error
    if missing:
        raise SanakitError("SK0106", f"{folder / 'card.json'} lacks {', '.join(sorted(missing))}")
    return Base(name=name, folder=folder, card=card)


def swap_core(base: LatentDiffusion, candidate: VAE | TextEncoder, seed: int) -> SanaTransformer2DModel:
    """The base's core with the joint that the candidate needs, freshly initialised."""
    if isinstance(candidate, VAE):
        cell = base.image_size % candidate.spec.spatial_compression_ratio
        if cell:
            raise SanakitError(
                "SK0110",
                f"{base.image_size} px do not divide by ratio "
                f"{candidate.spec.spatial_compression_ratio} of {candidate.name}",
            )
        adapter = ADAPTERS.get("linear-latents")
        ratio = base.vae.spec.spatial_compression_ratio
        return adapter(base.core, candidate.spec, base_ratio=ratio, image_size=base.image_size, seed=seed)  # type: ignore[call-arg]
    return ADAPTERS.get("linear-caption")(base.core, candidate.spec, seed=seed)  # type: ignore[call-arg]


def misfit(base: LatentDiffusion, candidate: VAE | TextEncoder) -> str:
    """Why the base's joints cannot take the candidate as they are; empty where they can."""
    if isinstance(candidate, VAE):
        old, new = base.vae.spec, candidate.spec
        return "" if old == new else f"the base's joints read {old.label} latents, {candidate.name} gives {new.label}"
    width, own = base.core.config.caption_channels, candidate.spec.embed_dim
    return "" if width == own else f"the base's caption layers read {width} channels, {candidate.name} gives {own}"


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
) -> tuple[LatentDiffusion, dict[str, float]]:
    """The swapped system as a strategy starts it, and the R^2 of its alignment.

    data and base_data hold the same pictures in the candidate's and the base's own latents and embeddings. Raises
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
        config = swap_core(base, candidate, seed).config
        core = new_core({k: v for k, v in config.items() if not k.startswith("_")}, seed=seed)
    else:
        core = swap_core(base, candidate, seed)
    system = LatentDiffusion(
        vae=candidate if is_vae else base.vae,
        text_encoder=base.text_encoder if is_vae else candidate,
        core=core,
        image_size=base.image_size,
        flow_shift=None if is_vae else base.flow_shift,
    )
    scores: dict[str, float] = {}
    if strategy.initialise == "align":
        if is_vae:
            own, theirs = data.latents[:ALIGNED, 0], base_data.latents[:ALIGNED, 0]
            shift = float(system.flow_shift or 1.0)
            scores["input_r2"] = align_input(core, base.core, own, theirs, method=input_method, flow_shift=shift)
            align_output(system, data, seed=seed)
        else:
            scores["caption_r2"] = align_caption(core, base.core, data.captions, base_data.captions)
    return system, scores


def describe_plan(base: LatentDiffusion, candidate: VAE | TextEncoder, core: SanaTransformer2DModel) -> dict[str, Any]:
    """plan.json: what happens to each parameter group, with shapes, and what else a swap touches."""
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
        }
        for group in GROUPS
    ]
    remarks = []
    if is_vae:
        ratio, own = (
            base.vae.spec.spatial_compression_ratio * old.patch_size,
            candidate.spec.spatial_compression_ratio * new.patch_size,
        )
        grid = base.image_size // ratio, base.image_size // own
        if grid[0] != grid[1]:
            remarks.append(
                f"token grid {grid[0]} x {grid[0]} -> {grid[1]} x {grid[1]}: the base's patches are average-pooled for alignment"
            )
        remarks.append(
            f"latents {base.vae.spec.label} -> {candidate.spec.label}; sigma means noise in the candidate's own latents"
        )
    else:
        remarks.append("the null embedding is recomputed with the candidate (empty prompt, no instruction)")
    return {"kind": "vae" if is_vae else "text_encoder", "groups": groups, "notes": remarks}
