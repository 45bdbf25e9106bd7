"""VAEs on top of diffusers' autoencoders, from a folder or from the hub; the classes that may be named by a folder."""

import importlib
import warnings
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.errors import SanakitError, warning_text
from sanakit.files import read_config
from sanakit.hub import fetch
from sanakit.vaes.base import VAE
from sanakit.vaes.normalisation import affine, both_stated, require_usable
from sanakit.weights.find import DIFFUSERS
from sanakit.weights.load import load_model

# class named by config.json -> module of sanakit.vaes and class that wraps it
ALLOWED_CLASSES = {
    "AsymmetricAutoencoderKL": "diffusers_vae.DiffusersVAE",
    "AutoencoderDC": "diffusers_vae.DiffusersVAE",
    "AutoencoderKL": "diffusers_vae.DiffusersVAE",
    "AutoencoderKLCogVideoX": "diffusers_vae.FrameVAE",
    "AutoencoderKLCosmos": "cosmos.Cosmos",
    "AutoencoderKLFlux2": "flux2.Flux2",
    "AutoencoderKLHunyuanImage": "diffusers_vae.DiffusersVAE",
    "AutoencoderKLHunyuanVideo": "diffusers_vae.FrameVAE",
    "AutoencoderKLHunyuanVideo15": "video.OneByOne",
    "AutoencoderKLKVAE": "diffusers_vae.DiffusersVAE",
    "AutoencoderKLKVAEVideo": "diffusers_vae.FrameVAE",
    "AutoencoderKLLTX2Video": "ltx.LTX",
    "AutoencoderKLLTXVideo": "ltx.LTX",
    "AutoencoderKLMagvit": "diffusers_vae.FrameVAE",
    "AutoencoderKLQwenImage": "diffusers_vae.FrameVAE",
    "AutoencoderKLQwenImage21": "video.OpaqueRGBA",
    "AutoencoderKLWan": "diffusers_vae.FrameVAE",
    "AutoencoderRAE": "rae.RAE",
    "AutoencoderTiny": "diffusers_vae.DiffusersVAE",
    "VQModel": "diffusers_vae.DiffusersVAE",
    "PCAPatchAutoencoder": "pca.PCAVAE",
    "TranslatedAutoencoder": "translated.TranslatedVAE",
}
# class -> what its config states where it is wrapped by another class
VARIANTS = {"VQModel": ("norm_type", "spatial", "vq.MoVQ")}
OWN_FORMATS = ("PCAPatchAutoencoder", "TranslatedAutoencoder")  # that diffusers does not know


class DiffusersVAE(VAE):
    """Any diffusers autoencoder of images. Families that differ override the static functions."""

    @staticmethod
    def to_model(images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] as the model's `encode` takes them."""
        return images

    @staticmethod
    def to_raw(latents: Tensor) -> Tensor:
        """What it gives -> raw latents (B, C, h, w)."""
        return latents

    @classmethod
    def run_encoder(cls, model: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H, W) -> raw latents and their std, None without a posterior; `encode` returns one,
        `latents` or `latent`."""
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
    """A video autoencoder on dataset: each is a video of one frame."""

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

    spec: LatentSpec
    stats: LatentStats  # where config.json states none
    stats_with_weights: ClassVar[bool] = False  # and nothing is known before loading: `stats` is the identity
    unstated: ClassVar[bool] = False  # no published statistics are known: what config.json lacks is warned about
    model_class: ClassVar[str]
    published: ClassVar[dict[str, Any] | None] = None
    small: ClassVar[dict[str, Any]]

    @classmethod
    def build(cls, config: dict[str, Any]) -> nn.Module:
        import diffusers

        return getattr(diffusers, cls.model_class)(**config)

    @classmethod
    def load(cls) -> Self:

        vae = cls.from_folder(fetch(cls.hub, cls.revision))
        if vae.spec != cls.spec:
            raise SanakitError("SK0202", f"{cls.hub} is {vae.spec.label}, the record of {cls.name} is {cls.spec.label}")
        return vae

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        model, spec, stats = load_diffusers_model(folder, cls)
        if stats is None and cls.unstated:
            warnings.warn(warning_text("SK0208", f"{folder / 'config.json'} states no scaling"), stacklevel=2)
        return cls._noted(cls(model, spec, stats or cls.stats), folder)

    @classmethod
    def tiny(cls) -> Self:
        return cls(cls.build(cls.small), cls.spec, cls.stats)


def wrapper_of(folder: Path) -> Any:
    """The class that wraps a folder's autoencoder.
    Raises SK0106 (not allowed) or SK0112 (wants to run its own code)."""
    config = read_config(folder)
    name = str(config.get("_class_name", ""))
    if name not in ALLOWED_CLASSES:
        if "auto_map" in config:
            raise SanakitError("SK0112", f"{folder} names {config['auto_map']} for its class {name}")
        raise SanakitError(
            "SK0106",
            f"{folder} is a {name or 'folder without _class_name'}, expected one of {', '.join(ALLOWED_CLASSES)}",
        )
    return wrapper_named(name, config)


def wrapper_named(class_name: str, config: dict[str, Any]) -> Any:
    """The class that wraps a diffusers class of the allowlist with this config."""
    key, value, variant = VARIANTS.get(class_name, ("", None, ""))
    path = variant if variant and config.get(key) == value else ALLOWED_CLASSES[class_name]
    module, _, wrapper = path.partition(".")
    return getattr(importlib.import_module(f"sanakit.vaes.{module}"), wrapper)


def load_diffusers_model(
    folder: Path, wrapper: type[DiffusersVAE] | None = None
) -> tuple[nn.Module, LatentSpec, LatentStats | None]:
    """Model, measured geometry and stated normalisation of a folder.

    Raises SK0106 or SK0112 (class), SK0107 (weights that do not fit), SK0127 (normalisation),
    or what `find_weights` raises.
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
    """Measured on one grey image, not guessed: several configs lack `spatial_compression_ratio`."""
    size = getattr(model, "decoder_image_size", 128)  # AutoencoderRAE takes images of one size
    with torch.no_grad():
        raw, _ = wrapper.run_encoder(model, torch.zeros(1, 3, size, size, device=model.device, dtype=model.dtype))
    return LatentSpec(latent_channels=raw.shape[1], spatial_compression_ratio=size // raw.shape[-1])
