"""A VAE, a text encoder or a base by its name: registered, `path:DIR` or `hub:owner/repo[@revision][:subfolder]`.

The one place that knows the three ways to name a component.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sanakit.assembly import LatentDiffusion
from sanakit.core.dit import load_core
from sanakit.errors import SanakitError, did_you_mean
from sanakit.files import cache_dir
from sanakit.folders import class_named, local_path, refuse_whole_pipeline, require_folder, spellings
from sanakit.formats.native import converted
from sanakit.formats.pipeline_folder import (
    INDEX,
    NULL_FILE,
    is_sana_pipeline,
    load_pipeline_encoder,
    pipeline_card,
    read_tensor,
)
from sanakit.hub import download
from sanakit.placement import Placement, host
from sanakit.registry import Registry, with_scheme
from sanakit.text_encoders import TEXT_ENCODERS, PromptEmbeds, TextEncoder
from sanakit.text_encoders.open_clip import OpenCLIP
from sanakit.text_encoders.query import changed_spec
from sanakit.text_encoders.transformer import TransformerEncoder
from sanakit.vaes import VAE, VAES
from sanakit.vaes.diffusers_vae import ALLOWED_CLASSES, wrapper_of
from sanakit.vaes.kept import read_kept
from sanakit.vaes.normalisation import from_scaling

CORES = Path(__file__).parent / "assets" / "cores"


def load_vae(name: str, *, scaling_factor: float | None = None) -> VAE:
    """A registered name, `path:DIR` or `hub:owner/repo[@revision][:subfolder]`; `scaling_factor` overrides.

    Raises SK0101, SK0106, SK0124 (a whole pipeline), SK0902, or what loading the folder raises.
    """
    scheme, _, rest = name.partition(":")
    if scheme in ("path", "hub"):

        def check(place: Path) -> None:
            refuse_whole_pipeline(
                place, name, "a VAE", lambda part: class_named(part, "_class_name") in ALLOWED_CLASSES
            )

        folder = download(rest, check) if scheme == "hub" else require_folder(local_path(rest), name, VAES.names())
        check(folder)
        vae: VAE = wrapper_of(folder).from_folder(folder)
        vae.name, vae.kept = name, read_kept(vae, folder)
    else:
        vae = registered(VAES, name).load()
    if scaling_factor is not None:
        vae.set_stats(replace(from_scaling(scaling_factor), mean=vae.stats.mean))
    return vae.eval()


def load_text_encoder(name: str) -> TextEncoder:
    """A registered name, `path:DIR` or `hub:owner/repo[@revision][:subfolder]`, each with `?key=value&...` for the
    fields of TextSpec that its class lets one change: `path:DIR?max_tokens=300&layer=mean`. Raises SK0306 for
    `layer=auto`, which only a swap can tell (`with_layer`); SK0101, SK0106, SK0124 (a whole pipeline), SK0902, or what
    loading the folder raises."""
    plain, _, query = name.partition("?")
    scheme, _, rest = plain.partition(":")
    if scheme in ("path", "hub"):
        encoder = _from_folder(plain, scheme, rest)
        encoder.name = plain
    else:
        encoder = registered(TEXT_ENCODERS, plain).load()
    if query:
        encoder.set_spec(changed_spec(encoder, query))
    return encoder.eval()


def registered(registry: Registry[Any], name: str) -> Any:
    """What is registered under a name. Raises SK0101, which says so where the name is a path, a repository or a
    component of the other kind."""
    try:
        return registry.get(name)
    except SanakitError as error:
        wanted = with_scheme(name)
        fix = f"Give {wanted}." if wanted else None
        for kind, others in (("VAE", VAES), ("text encoder", TEXT_ENCODERS)):
            if name in others.names():
                fix = f"{name} is a {kind}: swap it in as one."
        if error.code != "SK0101" or fix is None:
            raise
        raise SanakitError("SK0101", error.found, fix=fix) from None


def _from_folder(name: str, scheme: str, rest: str) -> TextEncoder:

    def check(place: Path) -> None:
        refuse_whole_pipeline(place, name, "a text encoder", lambda part: part.name.startswith("text_encoder"))

    folder = download(rest, check) if scheme == "hub" else require_folder(local_path(rest), name, TEXT_ENCODERS.names())
    for place in spellings(folder):
        if place.name == "text_encoder" and is_sana_pipeline(place.parent):
            return load_pipeline_encoder(place.parent)
    check(folder)
    if (folder / "open_clip_config.json").is_file():
        return OpenCLIP.from_folder(folder)

    return TransformerEncoder.from_folder(folder)


@dataclass(frozen=True, kw_only=True)
class Base:
    """A working model on disk: folder of the core, card with VAE, text encoder, image size and flow shift.

    embedded: whether the core has the size that the strategies' own learning rates were measured on: it is packaged, or
    its card says so (`"embedded": true`), as that of a model that was trained on from a packaged one does.
    """

    name: str
    folder: Path
    card: dict[str, Any]
    embedded: bool = False

    def system(
        self,
        vae: VAE | None = None,
        text_encoder: TextEncoder | None = None,
        *,
        placement: Placement | None = None,
        part: str = "",
    ) -> LatentDiffusion:
        """Its parts on the CPU; placement: where they compute. part: "base" for a core that is not trained."""
        placement = placement or host()
        return LatentDiffusion(
            vae=vae or load_vae(self.card["vae"], scaling_factor=self.card.get("scaling_factor")),
            text_encoder=text_encoder or load_base_encoder(self.card["text_encoder"], self.folder, placement),
            core=load_core(self.folder),
            image_size=self.card["image_size"],
            flow_shift=self.card["flow_shift"],
            placement=placement,
            part=part,
            name=self.name if vae is None and text_encoder is None else "",
        )


def load_base(name: str) -> Base:
    """An embedded core by name; `path:` a folder as `full` writes it, a diffusers pipeline folder, or a native Sana
    `.pth` that was converted with --allow-pickle; `hub:` a pipeline repository. Raises SK0101, SK0106,
    SK0601 or SK0603."""
    scheme, _, rest = name.partition(":")
    folder = local_path(rest) if scheme == "path" else CORES / name
    if scheme == "hub":
        folder = download(rest)
        return Base(name=name, folder=folder / "transformer", card=pipeline_card(name, folder))
    if scheme == "path" and (folder / INDEX).is_file():
        return Base(name=name, folder=folder / "transformer", card=pipeline_card(f"path:{folder}", folder))
    if (
        scheme == "path"
        and folder.is_dir()
        and (folder.parent / INDEX).is_file()
        and not (folder / "card.json").is_file()
    ):
        raise SanakitError(
            "SK0106", f"{folder} is one part of a pipeline, expected a base", fix=f"Use path:{folder.parent}"
        )
    if scheme == "path" and folder.is_file():
        folder = converted(folder, cache_dir(), allow_pickle=False)
    if scheme != "path" and not (folder / "card.json").is_file():
        known = sorted(p.name for p in CORES.iterdir())
        found = f"no base named {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
        raise SanakitError("SK0101", found, fix=f"Give {wanted}." if (wanted := with_scheme(name)) else None)
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        missing = {"vae", "text_encoder", "image_size", "flow_shift"} - card.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise SanakitError("SK0106", f"{folder / 'card.json'}: {error}") from error
    if missing:
        raise SanakitError("SK0106", f"{folder / 'card.json'} lacks {', '.join(sorted(missing))}")
    # a component that was trained with the core lies beside it
    resolved = {k: v.replace("path:./", f"path:{folder}/", 1) if isinstance(v, str) else v for k, v in card.items()}
    return Base(name=name, folder=folder, card=resolved, embedded=scheme != "path" or resolved.get("embedded") is True)


def load_base_encoder(reference: str, core_folder: Path, placement: Placement | None = None) -> TextEncoder:
    """A base's own text encoder, with the null embedding that its core was trained with where that was kept."""
    encoder = load_text_encoder(reference)
    kept = core_folder / NULL_FILE
    if kept.is_file():
        with (placement or host()).holding(encoder):
            null, embeds = encoder.null(), read_tensor(kept, "embeds")  # (L, D)
        if embeds.shape != null.embeds.shape[1:]:
            raise SanakitError(
                "SK0107", f"{kept} is {tuple(embeds.shape)}, {reference} gives {tuple(null.embeds.shape[1:])}"
            )
        encoder.kept_null = PromptEmbeds(embeds.float()[None] * null.mask[..., None], null.mask)
    return encoder
