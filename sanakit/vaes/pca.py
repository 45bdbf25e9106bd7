"""PCA patch autoencoder: the closed-form baseline of any geometry that a trained VAE must beat.

Patches of f x f x 3 pixels are projected on their first c principal components. Components are orthonormal, so
the decoder is the transpose; latents are normalised per channel by the training images' moments.
"""

import json
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.errors import SanakitError
from sanakit.files import read_config
from sanakit.vaes.base import VAE, VAES
from sanakit.weights.find import TRANSFORMERS, find_weights, read_tensors

ASSETS = Path(__file__).parent.parent / "assets" / "vaes"


class PCAPatchAutoencoder(nn.Module):
    """components: (c, 3 f f) orthonormal rows; mean: (3 f f)."""

    def __init__(self, components: Tensor, mean: Tensor, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.register_buffer("components", components.float())
        self.register_buffer("mean", mean.float())

    def encode(self, images: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(images, self.ratio)  # (B, 3 f f, h, w)
        return torch.einsum("cd,bdhw->bchw", self.components, patches - self.mean[:, None, None])

    def decode(self, latents: Tensor) -> Tensor:
        patches = torch.einsum("cd,bchw->bdhw", self.components, latents) + self.mean[:, None, None]
        return F.pixel_shuffle(patches, self.ratio)


class PCAVAE(VAE):
    """Any ratio and channel count: `PCAVAE.fit(images, ratio, channels)`, `save`, then `path:DIR`."""

    def _encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images)

    def _decode(self, raw_latents: Tensor) -> Tensor:
        return self.model.decode(raw_latents)

    @classmethod
    def fit(cls, images: Tensor, ratio: int, channels: int) -> Self:
        """images: (N, 3, H, W) uint8. Raises SK0403 with fewer patches than channels."""
        size, count = 3 * ratio * ratio, 0
        total, second = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        for chunk in images.split(256):
            patches = F.pixel_unshuffle(chunk.float().div(127.5).sub(1), ratio)
            rows = patches.permute(0, 2, 3, 1).reshape(-1, size).double()
            count += len(rows)
            total += rows.sum(0)
            second += rows.T @ rows
        if count <= channels or channels > size:
            raise SanakitError("SK0403", f"{count} patches of {size} values cannot carry {channels} components")
        mean = total / count
        values, vectors = torch.linalg.eigh(second / count - torch.outer(mean, mean))
        components = vectors.flip(1)[:, :channels].T.contiguous()
        std = values.flip(0)[:channels].clamp_min(1e-8).sqrt()
        spec = LatentSpec(latent_channels=channels, spatial_compression_ratio=ratio)
        return cls(PCAPatchAutoencoder(components, mean, ratio), spec, LatentStats(std=tuple(std.tolist())))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "_class_name": "PCAPatchAutoencoder",
            "ratio": self.spec.spatial_compression_ratio,
            "latents_mean": self.stats.mean,
            "latents_std": self.stats.std,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file({k: v.contiguous() for k, v in self.model.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        config = read_config(folder)
        try:
            weights = read_tensors(find_weights(folder, TRANSFORMERS).files[0])
            model = PCAPatchAutoencoder(weights["components"], weights["mean"], int(config["ratio"]))
            channels, size = weights["components"].shape
            if size != 3 * model.ratio**2:
                raise ValueError(f"components span {size} values, ratio {model.ratio} needs {3 * model.ratio**2}")
            spec = LatentSpec(latent_channels=channels, spatial_compression_ratio=model.ratio)
            mean, std = (tuple(float(v) for v in config[key]) for key in ("latents_mean", "latents_std"))
            return cls(model, spec, LatentStats(mean=mean, std=std))
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise SanakitError("SK0107", f"{folder}: {error}") from error

    @classmethod
    def load(cls) -> Self:
        return cls.from_folder(ASSETS / cls.name)

    @classmethod
    def tiny(cls) -> Self:
        generator = torch.Generator().manual_seed(0)
        return cls.fit(torch.randint(256, (32, 3, 32, 32), generator=generator, dtype=torch.uint8), 8, 4)


@VAES.register("pca-f8c4", title="PCA patches, f8c4", licence="CC BY-SA 4.0", embedded=True)
class PCAF8C4(PCAVAE):
    pass


@VAES.register("pca-f16c16", title="PCA patches, f16c16", licence="CC BY-SA 4.0", embedded=True)
class PCAF16C16(PCAVAE):
    pass


@VAES.register("pca-f16c32", title="PCA patches, f16c32", licence="CC BY-SA 4.0", embedded=True)
class PCAF16C32(PCAVAE):
    pass


@VAES.register("pca-f32c64", title="PCA patches, f32c64", licence="CC BY-SA 4.0", embedded=True)
class PCAF32C64(PCAVAE):
    pass
