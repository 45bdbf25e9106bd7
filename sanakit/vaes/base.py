"""What every VAE is to sanakit: images in [-1, 1] to raw latents to normalised latents, and back.

Raw latents come straight from the encoder and are what caches hold; `normalize` applies the per-channel affine
that the core sees. The base class owns freezing, no_grad, shape checks and the fp32 statistics.
Shapes: B batch, C latent channels, H x W pixels, h x w latents.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sanakit.batching import in_batches
from sanakit.contracts import LatentSpec, LatentStats
from sanakit.errors import SanakitError
from sanakit.hashing import config_facts, hash_tensors
from sanakit.registry import Registry
from sanakit.vaes.kept import KeptLatents
from sanakit.vaes.normalisation import require_usable, state_affine

VAES: Registry[type["VAE"]] = Registry("vaes")
ROUNDING = 1e-3  # that images may lie beyond [-1, 1]
SIZED = "A VAE takes images whose sides its compression divides; some take one size only."


class VAE(nn.Module):
    """Base class. A family file sets the record and implements `load`, `tiny`, `_encode` and `_decode`."""

    name: str = ""
    title: str = ""
    part: ClassVar[str] = "vae"  # of a placement, whose precision it computes in
    hub: ClassVar[str | None] = None
    revision: ClassVar[str | None] = None
    variant: ClassVar[str] = ""  # of the wrapper, where one class of model is called in several ways
    spec: LatentSpec
    stats: LatentStats
    kept: KeptLatents | None = None  # whose latents these are, where only the decoder was trained
    notes: tuple[str, ...] = ()  # what a user should know of how it was loaded; part of the plan

    def __init__(self, model: nn.Module, spec: LatentSpec, stats: LatentStats) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.spec = spec
        self.set_stats(stats)

    @property
    def fixed_image_size(self) -> int | None:
        """The only side that the model takes, where there is one."""
        return None

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
        """`_encode`, and the posterior's standard deviation of the same shape;
        None where the encoder is deterministic."""
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

    @property
    def applied_stats(self) -> list[list[float]]:
        """Mean and std of every channel, as they are applied: equal for one value and for as many equal ones."""
        return [buffer.flatten().tolist() for buffer in (self.latents_mean, self.latents_std)]

    def write_stats(self, config: dict[str, Any]) -> None:
        """States the normalisation in force in the config of a model that was saved, where `from_folder` reads it."""
        state_affine(config, self.stats, self.spec.latent_channels)

    def stats_buffers(self) -> dict[str, Tensor]:
        """Buffers of the model that state the normalisation in force, by name, where the family has it beside the
        weights. They are saved with the weights, and no part of the fingerprint."""
        return {}

    def encode_raw(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> raw latents (B, C, h, w). Raises SK0217 for images of another range or type,
        SK0202 if the shape is not the declared one."""
        return self.encode_posterior(images)[0]

    @torch.no_grad()
    def encode_posterior(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raw latents, which are the posterior's mean, and its standard deviation; None where there is no posterior.
        They come back to the device of the images, wherever the weights are."""
        require_images(images)
        height, width = images.shape[-2:]
        ratio = self.spec.spatial_compression_ratio
        side = self.fixed_image_size
        if side and (height, width) != (side, side):
            found = f"images are {height} x {width}, this model takes {side} px squares only"
            raise SanakitError("SK0202", found, cause=SIZED, fix=f"Give images of that size: --image-size {side}.")
        if images.ndim != 4 or images.shape[1] != 3 or height % ratio or width % ratio:
            found = f"images are {tuple(images.shape)}, expected (B, 3, H, W) with H and W multiples of {ratio}"
            near = max(ratio, width // ratio * ratio)
            fix = f"Give images of such a size: --image-size {near} or {near + ratio}."
            raise SanakitError("SK0202", found, cause=SIZED, fix=fix)
        what = f"encoding with {self.name or 'the VAE'}"
        parts, _ = in_batches(images, len(images), lambda some: self._posterior(self.placed(some)), what=what)
        raw = torch.cat([part[0].to(images) for part in parts])
        std = None if parts[0][1] is None else torch.cat([part[1].to(images) for part in parts])
        if tuple(raw.shape[1:]) != self.spec.shape(height, width):
            raise SanakitError(
                "SK0202",
                f"latents of {height} x {width} images are {tuple(raw.shape[1:])}, "
                f"the record declares {self.spec.shape(height, width)}",
            )
        return raw, std

    @torch.no_grad()
    def decode_raw(self, raw_latents: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) -> images (B, 3, H, W), clamped to [-1, 1]."""
        what = f"decoding with {self.name or 'the VAE'}"
        parts, _ = in_batches(raw_latents, len(raw_latents), self._decoded, what=what, smaller=self._in_tiles)
        return torch.cat([part.to(raw_latents) for part in parts])

    def _decoded(self, raw_latents: Tensor) -> Tensor:
        return self._decode(self.placed(raw_latents)).clamp(-1, 1)

    def _in_tiles(self) -> bool:
        """Decode in overlapping tiles from now on, where the model can and did not before."""
        if not hasattr(self.model, "enable_tiling") or getattr(self.model, "use_tiling", True):
            return False
        self.model.enable_tiling()
        return True

    def placed(self, values: Tensor) -> Tensor:
        """Values on the device and in the precision of the model's weights."""
        weights = next((w for w in self.model.state_dict().values() if w.is_floating_point()), values)
        return values.to(device=weights.device, dtype=weights.dtype)

    def normalize(self, raw_latents: Tensor) -> Tensor:
        """On the device of its argument."""
        return (raw_latents - self.latents_mean.to(raw_latents.device)) / self.latents_std.to(raw_latents.device)

    def denormalize(self, latents: Tensor) -> Tensor:
        """On the device of its argument."""
        return latents * self.latents_std.to(latents.device) + self.latents_mean.to(latents.device)

    def encode(self, images: Tensor) -> Tensor:
        return self.normalize(self.encode_raw(images))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_raw(self.denormalize(latents))

    def fingerprint(self) -> str:
        """Whose raw latents these are: the key of their caches (normalisation is applied late). The hash of the
        weights, or that of the VAE whose encoder this one has kept."""
        return self.kept.fingerprint if self.kept else self.weights_hash()

    def weights_hash(self) -> str:
        """Of weights, class, configuration, geometry, and how the model is called where its class does not tell."""
        return self.hash_without((), *config_facts(self.model))

    def hash_without(self, names: Iterable[str], *facts: str) -> str:
        """Of weights, class and geometry, without some of the parameters. facts: besides."""
        left_out = {*names, *self.stats_buffers()}
        tensors = {name: tensor for name, tensor in self.model.state_dict().items() if name not in left_out}
        variant = (self.variant,) if self.variant else ()
        return hash_tensors(tensors, type(self.model).__name__, self.spec.label, *variant, *facts)


def require_images(images: Tensor) -> None:
    """Raises SK0217 where images are no tensor of floating point values in [-1, 1]."""
    if not isinstance(images, Tensor):
        raise SanakitError("SK0217", f"images are a {type(images).__name__}, expected a tensor of values in [-1, 1]")
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise SanakitError("SK0217", f"images are {kind}, expected floating point values in [-1, 1]")
    if not images.numel():
        return
    low, high = (value.item() for value in images.aminmax())
    if not (low >= -1 - ROUNDING and high <= 1 + ROUNDING):  # NaN included
        raise SanakitError("SK0217", f"images reach from {low:.4g} to {high:.4g}, expected -1 to 1")
