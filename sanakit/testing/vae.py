"""The contract of a VAE: geometry, determinism, normalisation, frozen weights, fingerprint."""

from typing import Any

import torch
from torch import Tensor

from sanakit.contracts import LatentSpec, LatentStats
from sanakit.errors import SanakitError
from sanakit.testing.contract import changed_weight, require, require_close, resolve
from sanakit.vaes.base import VAE, VAES

WHOLE = "Return tensors of the declared shape in float32; `.float()` after a model in half precision."


def check_vae(vae: str | type[VAE] | VAE, *, images: Tensor | None = None) -> None:
    """A registered name, a class (its `tiny()` twin is checked) or a VAE in memory keeps the contract of `VAE`.

    images: (B, 3, H, W) in [-1, 1], B at least 2; by default noise of two sizes that the VAE takes. Raises SK0115, or
    SK0202 and SK0217 as the VAE itself does.
    """
    item, name = resolve(vae, VAES)
    if isinstance(item, type):
        is_vae = issubclass(item, VAE)
        require(is_vae, name, f"{item!r} is no subclass of VAE", "Derive it from sanakit.vaes.VAE.")
        twin: Any = item
        item = twin.tiny()
    require(isinstance(item, VAE), name, f"a {type(item).__name__}, expected a VAE", "Return cls(...) from `tiny`.")
    require(isinstance(item.spec, LatentSpec), name, f"spec is {item.spec!r}", "Set spec = LatentSpec(...).")
    given = noise_for(item) if images is None else images
    _check_determinism(item, name, given)
    _check_shapes(item, name, given)
    _check_normalisation(item, name, given)
    _check_frozen(item, name, given)
    _check_fingerprint(item, name)
    _check_refusals(item, name)


def noise_for(vae: VAE, *, height: int = 1, width: int = 2, count: int = 2) -> Tensor:
    """Seeded noise in [-1, 1] of a size that the VAE takes: 2 latents a side times height and width, unless it is
    fixed. (count, 3, H, W)"""
    side = vae.fixed_image_size or 2 * vae.spec.spatial_compression_ratio
    size = (side, side) if vae.fixed_image_size else (side * height, side * width)
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _check_shapes(vae: VAE, name: str, images: Tensor) -> None:
    before = images.clone()
    raw = vae.encode_raw(images)  # raises SK0202 where the geometry is not the declared one
    require(torch.equal(images, before), name, "encoding changes the images that it is given", "Work on a copy.")
    kind = str(raw.dtype).removeprefix("torch.")
    require(raw.dtype == torch.float32, name, f"raw latents are {kind}, expected float32", WHOLE)
    require(bool(raw.isfinite().all()), name, "raw latents are not finite for images in [-1, 1]", "Encode in fp32.")
    decoded = vae.decode_raw(raw)
    require(
        decoded.shape == images.shape and decoded.dtype == torch.float32,
        name,
        f"decoded images are {tuple(decoded.shape)} {decoded.dtype}, expected {tuple(images.shape)} torch.float32",
        WHOLE,
    )
    mean, std = vae.encode_posterior(images)
    require_close(mean, raw, name, "the posterior's mean is not what `_encode` gives", "Return the mode, never a draw.")
    if std is not None:
        right = std.shape == raw.shape and std.dtype == torch.float32 and bool((std > 0).all())
        found = f"the posterior's std is {tuple(std.shape)} {std.dtype}, lowest {std.min():.3g}"
        require(right, name, f"{found}; expected the latents' shape, float32, above 0", "See `VAE._posterior`.")


def _check_determinism(vae: VAE, name: str, images: Tensor) -> None:
    raw = vae.encode_raw(images)
    fix = "Take the posterior's mode, and call eval()."
    require(torch.equal(raw, vae.encode_raw(images)), name, "two encodings of the same images differ", fix)
    require_close(
        raw[:1],
        vae.encode_raw(images[:1]),
        name,
        "an image's latents depend on the other images of its batch",
        "Normalise within an image, and call eval().",
    )


def _check_normalisation(vae: VAE, name: str, images: Tensor) -> None:
    raw = vae.encode_raw(images[:1])
    fix = "Leave `normalize` and `denormalize` to the base class; state mean and std in LatentStats."
    round_trip = vae.denormalize(vae.encode(images[:1]))
    require_close(round_trip, raw, name, "denormalised latents are not the raw ones", fix)
    kept, channels = vae.stats, vae.spec.latent_channels
    for label, tensor in (("mean", vae.latents_mean), ("std", vae.latents_std)):
        require(
            tensor.dtype == torch.float32,
            name,
            f"latents_{label} is {tensor.dtype}, expected torch.float32",
            "Convert `vae.model`, not the VAE.",
        )
    try:
        vae.set_stats(LatentStats(mean=tuple(float(channel) for channel in range(channels)), std=(3.0,)))
        other = vae.denormalize(vae.normalize(raw))
        require_close(other, raw, name, "normalising by other statistics cannot be undone", fix)
    finally:
        vae.set_stats(kept)


def _check_frozen(vae: VAE, name: str, images: Tensor) -> None:
    asking = [label for label, parameter in vae.named_parameters() if parameter.requires_grad]
    fix = "Call super().__init__(model, spec, stats), which freezes the model."
    require(not asking, name, f"{len(asking)} parameters ask for gradients, first {asking[:1]}; expected none", fix)
    require(not vae.encode(images[:1]).requires_grad, name, "latents carry gradients", fix)
    require(not vae.model.training, name, "the model is in training mode", fix)


def _check_fingerprint(vae: VAE, name: str) -> None:
    before, kept = vae.fingerprint(), vae.stats
    fix = "Leave `fingerprint` to the base class: caches of raw latents are keyed by it."
    require(vae.fingerprint() == before, name, "two fingerprints of the same weights differ", fix)
    try:
        vae.set_stats(LatentStats.from_scaling(0.5))
        same = vae.fingerprint() == before
    finally:
        vae.set_stats(kept)
    require(same, name, "the fingerprint depends on the normalisation, which is applied after the cache", fix)
    with changed_weight(vae.model) as changed:
        follows = not changed or vae.fingerprint() != before
    require(follows, name, "the fingerprint stays the same when a weight changes", fix)


def _check_refusals(vae: VAE, name: str) -> None:
    ratio = vae.spec.spatial_compression_ratio
    if ratio > 1:
        for size in ((2 * ratio + 1, 2 * ratio), (2 * ratio, ratio + ratio // 2)):
            _expect_refusal(lambda size=size: vae.encode_raw(torch.zeros(1, 3, *size)), name, f"images of {size}")
    if vae.spec.latent_channels != 3:
        _expect_refusal(lambda: vae.set_stats(LatentStats(mean=(0.0, 0.0, 0.0))), name, "3 means")


def _expect_refusal(attempt: object, name: str, what: str) -> None:
    try:
        attempt()  # type: ignore[operator]
    except SanakitError as error:
        require(error.code == "SK0202", name, f"{what} are refused with {error.code}, expected SK0202", str(error.fix))
        return
    require(False, name, f"{what} are taken, expected SK0202", "Leave `encode_raw` and `set_stats` to the base class.")
