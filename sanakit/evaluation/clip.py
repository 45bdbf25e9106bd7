"""A CLIP model of open_clip (arXiv 2212.07143), both towers, from a local folder or the hub: images and captions in one
space."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.errors import SanakitError
from sanakit.files import read_config
from sanakit.folders import local_path, require_folder
from sanakit.hub import cached_or_download
from sanakit.weights.find import OPEN_CLIP, find_weights, said
from sanakit.weights.load import as_expected, quiet, unwrapped

FOREIGN = ("hf_model_name", "hf_tokenizer_name")
DEFAULT_CLIP = "hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """label: what scores say. model: open_clip's own. size, mean, std: how images are prepared."""

    label: str
    model: nn.Module
    tokenizer: Any
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, D) of length 1."""
        weight = next(self.model.parameters())
        ready = resized(images, self.size, self.mean, self.std).to(weight.device, weight.dtype)
        return F.normalize(self.model.encode_image(ready).float(), dim=1).to(images.device)  # type: ignore[operator]

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D) of length 1, on the CPU."""
        weight = next(self.model.parameters())
        ids = self.tokenizer(list(texts), context_length=self.model.context_length).to(weight.device)
        return F.normalize(self.model.encode_text(ids).float(), dim=1).cpu()  # type: ignore[operator]


@cache
def load_clip(name: str) -> Clip:
    """`path:DIR` with open_clip_config.json, or `hub:owner/repo`. Raises SK0106 for a folder that is none, SK0902 at
    once where neither the hub's cache nor a network has it, SK0107, or what `find_weights` raises."""
    import open_clip

    scheme, _, rest = name.partition(":")
    if scheme not in ("path", "hub"):
        raise SanakitError(
            "SK0104", f"CLIP model {name!r}, expected path:DIR or hub:owner/repo", fix=f"Use path:{name}"
        )
    folder: Path = cached_or_download(rest) if scheme == "hub" else require_folder(local_path(rest), name, [])
    if not (folder / "open_clip_config.json").is_file():
        raise SanakitError(
            "SK0106",
            f"{folder} holds no open_clip_config.json",
            fix="Take a CLIP model that open_clip saved, such as " + DEFAULT_CLIP + ".",
        )
    stated = read_config(folder, "open_clip_config.json")
    text = stated.get("model_cfg", {}).get("text_cfg") or {}
    if foreign := [key for key in FOREIGN if text.get(key)]:
        raise SanakitError("SK0106", f"{folder} reads text with a model of transformers ({foreign[0]})")
    files = find_weights(folder, OPEN_CLIP)
    rename = unwrapped if any(unwrapped(tensor) != tensor for tensor in files.shapes) else None
    try:
        with as_expected(files, OPEN_CLIP, rename) as place, quiet():
            model = open_clip.create_model(f"local-dir:{place}")
            tokenizer = open_clip.get_tokenizer(f"local-dir:{place}")
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise SanakitError("SK0107", f"{folder}: {said(error)}") from error
    model.eval().requires_grad_(False)
    facts = open_clip.model.get_model_preprocess_cfg(model)
    size = facts["size"]
    sides: tuple[int, int] = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    label = f"CLIP {rest.partition('@')[0].rstrip('/').rpartition('/')[2]}"
    return Clip(
        label=label,
        model=model,
        tokenizer=tokenizer,
        size=sides,
        mean=tuple(facts.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(facts.get("std") or open_clip.OPENAI_DATASET_STD),
    )


def resized(images: Tensor, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, 3, *size), normalised as a network expects it. Antialiased, as the way to resize
    moves these scores (arXiv 2104.11222)."""
    shares = images / 2 + 0.5
    if tuple(shares.shape[2:]) != size:
        shares = F.interpolate(shares, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    centre, spread = (torch.tensor(v, dtype=shares.dtype).reshape(1, 3, 1, 1) for v in (mean, std))
    return (shares - centre.to(shares.device)) / spread.to(shares.device)
