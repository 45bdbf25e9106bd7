"""What every VAE is to sanakit: pictures in [-1, 1] to raw latents to normalised latents, and back.

Raw latents come straight from the encoder and are what caches hold; `normalize` applies the per-channel affine
that the core sees. The base class owns freezing, no_grad, shape checks and the fp32 statistics.
Shapes: B batch, C latent channels, H x W pixels, h x w latents.
"""

import json
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.errors import SanakitError, did_you_mean
from sanakit.hashing import hash_module
from sanakit.registry import Registry

VAES: Registry[type["VAE"]] = Registry("vaes", "sanakit.vaes")


class VAE(nn.Module):
    """Base class. A family file sets the record and implements `load`, `tiny`, `_encode` and `_decode`."""

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    hub: ClassVar[str | None] = None
    revision: ClassVar[str | None] = None

    def __init__(self, model: nn.Module, spec: LatentSpec, stats: LatentStats) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.spec = spec
        self.set_stats(stats)

    @classmethod
    @abstractmethod
    def load(cls) -> Self:
        """The pretrained component. Raises SanakitError when it is not to be had."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """A small, randomly initialised twin that runs on a CPU in milliseconds."""

    @abstractmethod
    def _encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> raw latents (B, C, h, w), the posterior mean where there is a posterior."""

    @abstractmethod
    def _decode(self, raw_latents: Tensor) -> Tensor:
        """(B, C, h, w) raw -> (B, 3, H, W), about [-1, 1]."""

    def set_stats(self, stats: LatentStats) -> None:
        channels = self.spec.latent_channels
        for label, values in (("mean", stats.mean), ("std", stats.std)):
            if len(values) not in (1, channels):
                raise SanakitError("SK0202", f"latent {label} has {len(values)} values, expected 1 or {channels}")
            tensor = torch.tensor(values, dtype=torch.float32).expand(channels).reshape(1, -1, 1, 1).clone()
            self.register_buffer(f"latents_{label}", tensor, persistent=False)
        self.stats = stats

    @torch.no_grad()
    def encode_raw(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> raw latents (B, C, h, w). Raises SK0202 if the shape is not the declared one."""
        height, width = images.shape[-2:]
        ratio = self.spec.spatial_compression_ratio
        if images.ndim != 4 or images.shape[1] != 3 or height % ratio or width % ratio:
            raise SanakitError(
                "SK0202", f"pictures are {tuple(images.shape)}, expected (B, 3, H, W) with H and W multiples of {ratio}"
            )
        raw = self._encode(images)
        if tuple(raw.shape[1:]) != self.spec.shape(height, width):
            raise SanakitError(
                "SK0202",
                f"latents of {height} x {width} pictures are {tuple(raw.shape[1:])}, "
                f"the record declares {self.spec.shape(height, width)}",
            )
        return raw

    @torch.no_grad()
    def decode_raw(self, raw_latents: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) -> pictures (B, 3, H, W), clamped to [-1, 1]."""
        return self._decode(raw_latents).clamp(-1, 1)

    def normalize(self, raw_latents: Tensor) -> Tensor:
        return (raw_latents - self.latents_mean) / self.latents_std

    def denormalize(self, latents: Tensor) -> Tensor:
        return latents * self.latents_std + self.latents_mean

    def encode(self, images: Tensor) -> Tensor:
        return self.normalize(self.encode_raw(images))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_raw(self.denormalize(latents))

    def fingerprint(self) -> str:
        """Hash of weights, class and geometry: the key of raw-latent caches (normalisation is applied late)."""
        return hash_module(self.model, type(self.model).__name__, self.spec.label)


class DiffusersVAE(VAE):
    """Any diffusers autoencoder for pictures; `encode` may return a posterior, `latents` or `latent`."""

    def _encode(self, images: Tensor) -> Tensor:
        output = self.model.encode(images)
        if hasattr(output, "latent_dist"):
            return output.latent_dist.mode()
        return output.latents if hasattr(output, "latents") else output.latent

    def _decode(self, raw_latents: Tensor) -> Tensor:
        return self.model.decode(raw_latents).sample

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """A `save_pretrained` folder. Geometry and scaling come from the config; weights must fit it exactly."""
        return cls(*load_diffusers_model(folder))


ALLOWED_CLASSES = {"AutoencoderKL": DiffusersVAE, "AutoencoderDC": DiffusersVAE, "AutoencoderTiny": DiffusersVAE}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a component folder. Raises SK0106 when there is none to read."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SanakitError("SK0106", f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise SanakitError("SK0106", f"{path} holds {type(config).__name__}, expected an object")
    return config


def load_diffusers_model(folder: Path) -> tuple[nn.Module, LatentSpec, LatentStats]:
    """Model, geometry and normalisation of a folder. Raises SK0106 (class) or SK0107 (weights that do not fit)."""
    import diffusers

    config = read_config(folder)
    name = str(config.get("_class_name", ""))
    if name not in ALLOWED_CLASSES:
        raise SanakitError(
            "SK0106",
            f"{folder} is a {name or 'folder without _class_name'}, expected one of {', '.join(ALLOWED_CLASSES)}",
        )
    try:
        model, report = getattr(diffusers, name).from_pretrained(
            folder, output_loading_info=True, torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise SanakitError("SK0107", f"{folder}: {str(error).splitlines()[0]}") from error
    wrong = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report.get(kind, [])]
    if wrong:
        raise SanakitError("SK0107", f"{folder}: {len(wrong)} tensors do not fit the config, first {wrong[0]}")
    return model, diffusers_spec(model), diffusers_stats(model)


def diffusers_spec(model: nn.Module) -> LatentSpec:
    """Measured, not guessed: several configs lack `spatial_compression_ratio`."""
    with torch.no_grad():
        output = model.encode(torch.zeros(1, 3, 128, 128))
    latents = output.latent_dist.mode() if hasattr(output, "latent_dist") else next(iter(output.values()))
    return LatentSpec(latent_channels=latents.shape[1], spatial_compression_ratio=128 // latents.shape[-1])


def diffusers_stats(model: nn.Module) -> LatentStats:
    config = model.config
    if config.get("latents_mean") is not None:
        return LatentStats(mean=tuple(config["latents_mean"]), std=tuple(config["latents_std"]))
    scale = config.get("scaling_factor")
    return LatentStats() if scale is None else LatentStats.from_scaling(scale, config.get("shift_factor") or 0.0)


def load_vae(name: str, *, scaling_factor: float | None = None) -> VAE:
    """A registered name, `path:DIR` or `hub:owner/repo[@revision][:subfolder]`; `scaling_factor` overrides."""
    scheme, _, rest = name.partition(":")
    if scheme == "path":
        folder = Path(rest).expanduser()
        if not folder.is_dir():
            raise SanakitError("SK0106", f"{folder} is not a folder{did_you_mean(name, VAES.names())}")
        vae: VAE = _class_of(folder).from_folder(folder)
    elif scheme == "hub":
        from sanakit.interop.hub import download

        folder = download(rest)
        vae = _class_of(folder).from_folder(folder)
    else:
        vae = VAES.get(name).load()
    if scaling_factor is not None:
        vae.set_stats(replace(LatentStats.from_scaling(scaling_factor), mean=vae.stats.mean))
    return vae.eval()


def _class_of(folder: Path) -> Any:
    if read_config(folder).get("_class_name") == "PCAPatchAutoencoder":
        from sanakit.vaes.pca import PCAVAE

        return PCAVAE
    return DiffusersVAE
