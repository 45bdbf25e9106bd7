"""From base and candidate: which parameter groups keep, align, re-initialise, with shapes and counts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import SanaTransformer2DModel

from sanakit.adapters import ADAPTERS
from sanakit.alignment import align_caption, align_input, align_output
from sanakit.assembly import LatentDiffusion
from sanakit.core.dit import GROUPS, load_core, new_core, parameters_by_group
from sanakit.data.base import cache_dir
from sanakit.data.cache import LatentDataset
from sanakit.errors import SanakitError, did_you_mean
from sanakit.interop.folder import INDEX, load_base_encoder, pipeline_card
from sanakit.interop.hub import download
from sanakit.interop.native import converted
from sanakit.swap.base import Strategy
from sanakit.text_encoders import TextEncoder
from sanakit.vaes import VAE, load_vae

CORES = Path(__file__).parent.parent / "assets" / "cores"


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


def build(
    base: LatentDiffusion,
    candidate: VAE | TextEncoder,
    strategy: type[Strategy],
    data: LatentDataset,
    base_data: LatentDataset,
    *,
    seed: int,
) -> tuple[LatentDiffusion, dict[str, float]]:
    """The swapped system as a strategy starts it, and the R^2 of its alignment.

    data and base_data hold the same pictures in the candidate's and the base's own latents and embeddings.
    """
    core = swap_core(base, candidate, seed)
    if strategy.initialise == "scratch":
        core = new_core({k: v for k, v in core.config.items() if not k.startswith("_")}, seed=seed)
    is_vae = isinstance(candidate, VAE)
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
            rows = slice(0, 2048)
            scores["input_r2"] = align_input(core, base.core, data.latents[rows, 0], base_data.latents[rows, 0])
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
