"""What every VAE is to sanakit: pictures in [-1, 1] to raw latents to normalised latents, and back.

Raw latents come straight from the encoder and are what caches hold; `normalize` applies the per-channel affine
that the core sees. The base class owns freezing, no_grad, shape checks and the fp32 statistics.
Shapes: B batch, C latent channels, H x W pixels, h x w latents.
"""

import importlib
import warnings
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.errors import SanakitError, warning_text
from sanakit.hashing import hash_module
from sanakit.interop.files import read_config
from sanakit.interop.loading import load_model
from sanakit.interop.place import class_named, local_path, refuse_whole_pipeline, require_folder
from sanakit.interop.weights import DIFFUSERS
from sanakit.registry import Registry
from sanakit.vaes.normalisation import affine, both_stated, from_scaling, require_usable

VAES: Registry[type["VAE"]] = Registry("vaes", "sanakit.vaes")


class VAE(nn.Module):
    """Base class. A family file sets the record and implements `load`, `tiny`, `_encode` and `_decode`."""

    name: str = ""
    title: str = ""
    hub: ClassVar[str | None] = None
    revision: ClassVar[str | None] = None
    picture_size: int | None = None  # the only side that the model takes, where there is one
    notes: tuple[str, ...] = ()  # what a user should know of how it was loaded; part of the plan

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

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """`_encode`, and the posterior's standard deviation of the same shape; None where the encoder is deterministic."""
        return self._encode(images), None

    def set_stats(self, stats: LatentStats) -> None:
        """Normalise by these from now on. Raises SK0202 (their number) or SK0127 (values that cannot be applied)."""
        channels = self.spec.latent_channels
        require_usable(self.name or type(self).__name__, stats)
        for label, values in (("mean", stats.mean), ("std", stats.std)):
            if len(values) not in (1, channels):
                raise SanakitError("SK0202", f"latent {label} has {len(values)} values, expected 1 or {channels}")
            tensor = torch.tensor(values, dtype=torch.float32).expand(channels).reshape(1, -1, 1, 1).clone()
            self.register_buffer(f"latents_{label}", tensor, persistent=False)
        self.stats = stats

    def encode_raw(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> raw latents (B, C, h, w). Raises SK0202 if the shape is not the declared one."""
        return self.encode_posterior(images)[0]

    @torch.no_grad()
    def encode_posterior(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raw latents, which are the posterior's mean, and its standard deviation; None where there is no posterior."""
        height, width = images.shape[-2:]
        ratio = self.spec.spatial_compression_ratio
        if self.picture_size and (height, width) != (self.picture_size, self.picture_size):
            raise SanakitError(
                "SK0202", f"pictures are {height} x {width}, this model takes {self.picture_size} px squares only"
            )
        if images.ndim != 4 or images.shape[1] != 3 or height % ratio or width % ratio:
            raise SanakitError(
                "SK0202", f"pictures are {tuple(images.shape)}, expected (B, 3, H, W) with H and W multiples of {ratio}"
            )
        raw, std = self._posterior(images)
        if tuple(raw.shape[1:]) != self.spec.shape(height, width):
            raise SanakitError(
                "SK0202",
                f"latents of {height} x {width} pictures are {tuple(raw.shape[1:])}, "
                f"the record declares {self.spec.shape(height, width)}",
            )
        return raw, std

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
    """Any diffusers autoencoder of pictures. Families that differ override the static functions."""

    @staticmethod
    def to_model(images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] as the model's `encode` takes them."""
        return images

    @staticmethod
    def to_raw(latents: Tensor) -> Tensor:
        """What it gives -> raw latents (B, C, h, w)."""
        return latents

    @classmethod
    def run_encoder(cls, model: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H, W) -> raw latents and their std, None without a posterior; `encode` returns one, `latents` or `latent`."""
        output = model.encode(cls.to_model(images))
        if hasattr(output, "latent_dist"):
            std = getattr(output.latent_dist, "std", None)  # Cosmos has an identity in a posterior's place
            return cls.to_raw(output.latent_dist.mode()), None if std is None else cls.to_raw(std)
        return cls.to_raw(output.latents if hasattr(output, "latents") else output.latent), None

    @staticmethod
    def run_decoder(model: Any, raw_latents: Tensor) -> Tensor:
        return model.decode(raw_latents).sample

    @staticmethod
    def read_stats(model: Any, config: dict[str, Any]) -> LatentStats | None:
        """What config.json itself states, or None: the library's defaults are guesses and do not count. Mean and std go
        before scaling and shift (`both_stated` says so). Raises SK0127."""
        return affine(config)

    def _encode(self, images: Tensor) -> Tensor:
        return self.run_encoder(self.model, images.to(self.model.dtype))[0].float()

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if type(self)._encode is not DiffusersVAE._encode:  # a family's own
            return super()._posterior(images)
        raw, std = self.run_encoder(self.model, images.to(self.model.dtype))
        return raw.float(), None if std is None else std.float()

    def _decode(self, raw_latents: Tensor) -> Tensor:
        return self.run_decoder(self.model, raw_latents.to(self.model.dtype)).float()

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """A `save_pretrained` folder. Geometry is measured, scaling comes from config.json, weights must fit exactly.

        A config that states no scaling leaves raw latents as they are, with a warning (SK0208).
        """
        model, spec, stats = load_diffusers_model(folder, cls)
        if stats is None:
            warnings.warn(warning_text("SK0208", f"{folder / 'config.json'} states no scaling"), stacklevel=2)
        return cls._noted(cls(model, spec, stats or LatentStats()), folder)

    @classmethod
    def _noted(cls, vae: Self, folder: Path) -> Self:
        """The VAE with a note, and a warning (SK0129), where its config states the normalisation twice."""
        reads_config = cls.read_stats is DiffusersVAE.read_stats
        if reads_config and (note := both_stated(read_config(folder), vae.stats)):
            vae.notes = (*vae.notes, note)
            warnings.warn(warning_text("SK0129", f"{folder / 'config.json'}: {note}"), stacklevel=3)
        return vae


class FrameVAE(DiffusersVAE):
    """A video autoencoder on pictures: each is a video of one frame."""

    @staticmethod
    def to_model(images: Tensor) -> Tensor:
        return images[:, :, None]

    @staticmethod
    def to_raw(latents: Tensor) -> Tensor:
        return latents[:, :, 0]

    @staticmethod
    def run_decoder(model: Any, raw_latents: Tensor) -> Tensor:
        return model.decode(raw_latents[:, :, None]).sample[:, :, 0]


class HubVAE(DiffusersVAE):
    """A published autoencoder: a family file sets the record, nothing is fetched before `load`.

    hub: owner/repo[:subfolder]. model_class: the diffusers class. published: its configuration where it is documented
    (None: not checked). small: the configuration of the tiny twin, of the same geometry.
    """

    spec: ClassVar[LatentSpec]
    stats: ClassVar[LatentStats]  # where config.json states none
    stats_with_weights: ClassVar[bool] = False  # and nothing is known before loading: `stats` is the identity
    model_class: ClassVar[str]
    published: ClassVar[dict[str, Any] | None] = None
    small: ClassVar[dict[str, Any]]

    @classmethod
    def build(cls, config: dict[str, Any]) -> nn.Module:
        import diffusers

        return getattr(diffusers, cls.model_class)(**config)

    @classmethod
    def load(cls) -> Self:
        from sanakit.interop.hub import fetch

        vae = cls.from_folder(fetch(cls.hub, cls.revision))
        if vae.spec != cls.spec:
            raise SanakitError("SK0202", f"{cls.hub} is {vae.spec.label}, the record of {cls.name} is {cls.spec.label}")
        return vae

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        model, spec, stats = load_diffusers_model(folder, cls)
        return cls._noted(cls(model, spec, stats or cls.stats), folder)

    @classmethod
    def tiny(cls) -> Self:
        return cls(cls.build(cls.small), cls.spec, cls.stats)


# class named by config.json -> module of sanakit.vaes and class that wraps it
ALLOWED_CLASSES = {
    "AutoencoderDC": "base.DiffusersVAE",
    "AutoencoderKL": "base.DiffusersVAE",
    "AutoencoderKLCosmos": "cosmos.Cosmos",
    "AutoencoderKLFlux2": "flux2.Flux2",
    "AutoencoderKLHunyuanImage": "base.DiffusersVAE",
    "AutoencoderKLLTXVideo": "ltx.LTX",
    "AutoencoderKLQwenImage": "base.FrameVAE",
    "AutoencoderKLWan": "base.FrameVAE",
    "AutoencoderRAE": "rae.RAE",
    "AutoencoderTiny": "base.DiffusersVAE",
    "VQModel": "base.DiffusersVAE",
    "PCAPatchAutoencoder": "pca.PCAVAE",
}


def wrapper_of(folder: Path) -> Any:
    """The class that wraps a folder's autoencoder. Raises SK0106 (not allowed) or SK0112 (wants to run its own code)."""
    config = read_config(folder)
    name = str(config.get("_class_name", ""))
    if name not in ALLOWED_CLASSES:
        if "auto_map" in config:
            raise SanakitError("SK0112", f"{folder} names {config['auto_map']} for its class {name}")
        raise SanakitError(
            "SK0106",
            f"{folder} is a {name or 'folder without _class_name'}, expected one of {', '.join(ALLOWED_CLASSES)}",
        )
    module, _, wrapper = ALLOWED_CLASSES[name].partition(".")
    return getattr(importlib.import_module(f"sanakit.vaes.{module}"), wrapper)


def load_diffusers_model(
    folder: Path, wrapper: type[DiffusersVAE] | None = None
) -> tuple[nn.Module, LatentSpec, LatentStats | None]:
    """Model, measured geometry and stated normalisation of a folder.

    Raises SK0106 or SK0112 (class), SK0107 (weights that do not fit), SK0127 (normalisation), or what `find_weights` raises.
    """
    import diffusers

    wrapper, config = wrapper or wrapper_of(folder), read_config(folder)
    kind = getattr(diffusers, config["_class_name"])
    model = load_model(folder, DIFFUSERS, lambda place: read_diffusers(kind, place))
    try:
        stats = wrapper.read_stats(model, config)
        if stats is not None:
            require_usable("config", stats)
    except SanakitError as error:
        raise SanakitError(error.code, f"{folder}: {error.found}", cause=error.cause, fix=error.fix) from error
    return model, diffusers_spec(model.eval(), wrapper), stats


def read_diffusers(kind: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A diffusers model in fp32 with the library's report of what did not fit."""
    return kind.from_pretrained(
        folder, output_loading_info=True, torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=False
    )


def diffusers_spec(model: Any, wrapper: type[DiffusersVAE] = DiffusersVAE) -> LatentSpec:
    """Measured on one grey picture, not guessed: several configs lack `spatial_compression_ratio`."""
    size = getattr(model, "decoder_image_size", 128)  # AutoencoderRAE takes pictures of one size
    with torch.no_grad():
        raw, _ = wrapper.run_encoder(model, torch.zeros(1, 3, size, size, device=model.device))
    return LatentSpec(latent_channels=raw.shape[1], spatial_compression_ratio=size // raw.shape[-1])


def load_vae(name: str, *, scaling_factor: float | None = None) -> VAE:
    """A registered name, `path:DIR` or `hub:owner/repo[@revision][:subfolder]`; `scaling_factor` overrides.

    Raises SK0101, SK0106, SK0124 (a whole pipeline), SK0902, or what loading the folder raises.
    """
    scheme, _, rest = name.partition(":")
    if scheme in ("path", "hub"):
        from sanakit.interop.hub import download

        def check(place: Path) -> None:
            refuse_whole_pipeline(
                place, name, "a VAE", lambda part: class_named(part, "_class_name") in ALLOWED_CLASSES
            )

        folder = download(rest, check) if scheme == "hub" else require_folder(local_path(rest), name, VAES.names())
        check(folder)
        vae: VAE = wrapper_of(folder).from_folder(folder)
        vae.name = name
    else:
        vae = VAES.get(name).load()
    if scaling_factor is not None:
        vae.set_stats(replace(from_scaling(scaling_factor), mean=vae.stats.mean))
    return vae.eval()
