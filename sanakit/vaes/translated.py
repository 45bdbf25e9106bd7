"""One VAE's encoder, a linear map of its latents, another VAE's decoder: latents of the first in the other's space.

The map reads the 3 x 3 neighbours of a latent (alignment/translation.py solves it). `TranslatedVAE` is a VAE like any
other: what it encodes is what `sanakit translate` writes into a cache, so that a run finds those rows and checks them.
"""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.contracts import LatentSpec
from sanakit.errors import SanakitError
from sanakit.files import read_config
from sanakit.vaes.base import VAE
from sanakit.vaes.diffusers_vae import wrapper_of
from sanakit.vaes.normalisation import per_channel
from sanakit.vaes.pca import PCAVAE
from sanakit.vaes.saving import write_vae
from sanakit.weights.find import TRANSFORMERS, find_weights, read_tensors

SIDE = 3  # of the neighbourhood that the map reads
PARTS = ("source", "target")


class LatentMap(nn.Module):
    """Raw latents (B, C, h, w) -> raw latents (B, D, H, W) of another grid; borders are repeated.

    weight (D u u, C d d, 3, 3), bias (D u u): d latents a side become one where the source's grid is finer, one becomes
    u where the target's is.
    """

    def __init__(self, weight: Tensor, bias: Tensor, down: int, up: int) -> None:
        super().__init__()
        self.down, self.up = down, up
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def forward(self, raw_latents: Tensor) -> Tensor:
        return F.pixel_shuffle(F.conv2d(padded(raw_latents, self.down), self.weight, self.bias), self.up)


def padded(latents: Tensor, down: int) -> Tensor:
    """(B, C, h, w) -> (B, C d d, h / d + 2, w / d + 2): what a 3 x 3 map reads."""
    return F.pad(F.pixel_unshuffle(latents, down), (SIDE // 2,) * 4, mode="replicate")


def grid_factors(source: LatentSpec, target: LatentSpec) -> tuple[int, int]:
    """How many latents a side of the source become one, and one of it how many of the target. Raises SK0219 for grids
    of which neither divides the other."""
    first, second = source.spatial_compression_ratio, target.spatial_compression_ratio
    if second % first == 0:
        return second // first, 1
    if first % second == 0:
        return 1, first // second
    raise SanakitError(
        "SK0219",
        f"latents of {source.label} lie {first} px apart, of {target.label} {second} px: neither divides the other",
        cause="The map reads latents around one place, and the two grids have no places in common.",
        fix="Encode the images again: sanakit encode.",
    )


class Translated(nn.Module):
    """The three parts as one module, whose weights make the fingerprint."""

    def __init__(self, source: VAE, latent_map: LatentMap, target: VAE) -> None:
        super().__init__()
        self.source, self.map, self.target = source, latent_map, target


class TranslatedVAE(VAE):
    """Geometry, normalisation and decoder of `target`; encodes by `source` and the map. It has no posterior."""

    model: Any

    def __init__(self, source: VAE, latent_map: LatentMap, target: VAE) -> None:
        super().__init__(Translated(source, latent_map, target), target.spec, target.stats)
        self.notes = (*target.notes, "its latents are translated from another VAE's")

    @property
    def fixed_image_size(self) -> int | None:
        return self.model.source.fixed_image_size or self.model.target.fixed_image_size

    @classmethod
    def load(cls) -> Self:
        raise SanakitError("SK0106", "a translated VAE is made by `sanakit translate` and named by path:DIR")

    @classmethod
    def tiny(cls) -> Self:
        source, target = PCAVAE.tiny(), PCAVAE.tiny()
        channels = source.spec.latent_channels
        weight = torch.zeros(channels, channels, SIDE, SIDE)
        weight[range(channels), range(channels), SIDE // 2, SIDE // 2] = 1
        return cls(source, LatentMap(weight, torch.zeros(channels), 1, 1), target)

    def _encode(self, images: Tensor) -> Tensor:
        ratio = self.model.source.spec.spatial_compression_ratio
        if images.shape[-2] % ratio or images.shape[-1] % ratio:
            height, width = images.shape[-2:]
            raise SanakitError("SK0202", f"images are {height} x {width}, expected multiples of {ratio}")
        latents = self.model.source._encode(images)
        return self.model.map(latents.to(self.model.map.weight.dtype)).float()

    def _decode(self, raw_latents: Tensor) -> Tensor:
        return self.model.target._decode(raw_latents)

    def stats_buffers(self) -> dict[str, Tensor]:
        parts = ((name, getattr(self.model, name)) for name in PARTS)
        return {f"{name}.model.{key}": value for name, vae in parts for key, value in vae.stats_buffers().items()}

    def save(self, folder: Path) -> None:
        """Both VAEs in their own formats, the map beside them."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in PARTS:
            write_vae(getattr(self.model, name), folder / name)
        stats = {"latents_mean": self.stats.mean, "latents_std": self.stats.std}
        config = {"_class_name": "TranslatedAutoencoder", "down": self.model.map.down, "up": self.model.map.up} | stats
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        tensors = {name: tensor.contiguous() for name, tensor in self.model.map.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Raises SK0107 where the map does not fit the two VAEs, SK0127 or SK0202 where the normalisation does not."""
        config = read_config(folder)
        source, target = (wrapper_of(folder / name).from_folder(folder / name) for name in PARTS)
        try:
            tensors = read_tensors(find_weights(folder, TRANSFORMERS).files[0])
            latent_map = LatentMap(tensors["weight"], tensors["bias"], int(config["down"]), int(config["up"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SanakitError("SK0107", f"{folder}: {type(error).__name__}: {error}") from error
        down, up = latent_map.down, latent_map.up
        channels = target.spec.latent_channels * up * up, source.spec.latent_channels * down * down
        stated, expected = tuple(latent_map.weight.shape), (*channels, SIDE, SIDE)
        if stated != expected or (down, up) != grid_factors(source.spec, target.spec):
            raise SanakitError("SK0107", f"{folder}: the map is {stated}, grids {down} and {up}; expected {expected}")
        vae = cls(source, latent_map, target)
        if (stats := per_channel(config)) is not None:  # the target's own, or what it was given instead
            vae.set_stats(stats)
        return vae


def save_translated(vae: TranslatedVAE, root: Path, fingerprint: str) -> Path:
    """`root`/vae-KEY, written aside and then renamed; one of the same weights stays. Raises SK0903."""
    folder = root / f"vae-{fingerprint[:20]}"
    if (folder / "config.json").is_file():
        return folder
    aside = root / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        vae.save(aside)
        aside.rename(folder)
    except OSError as error:
        raise SanakitError("SK0903", f"cannot write {folder}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder
