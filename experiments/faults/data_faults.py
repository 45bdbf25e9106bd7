"""Faults of the cache and of the data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fault_world import World, fault
from PIL import Image

from sanakit.contracts import GateResult
from sanakit.data import ImageDataset
from sanakit.data.cache import embeddings, raw_latents
from sanakit.data.screen import screen
from sanakit.vaes import VAE, VAES


def filled(
    world: World, name: str, dataset: ImageDataset | None = None, size: int = 32
) -> tuple[Path, VAE, ImageDataset]:
    cache, vae = world.fresh(name), world.vae("pca-f8c4")
    dataset = dataset or world.image_set.subset(range(16))
    raw_latents(vae, dataset, size, cache=cache)
    return cache, vae, dataset


@fault("stale cache: the VAE changed", threads="diffusion-pipe 497", gate="cache key", code="SK0404", stage="data")
def stale_vae(world: World) -> list[GateResult]:
    cache, _, dataset = filled(world, "stale-vae")
    raw_latents(VAES.get("pca-f8c4").tiny(), dataset, 32, cache=cache, must_exist=True)
    return []


@fault("stale cache: the text encoder changed", threads="kohya_ss 1629", gate="cache key", code="SK0404", stage="data")
def stale_encoder(world: World) -> list[GateResult]:
    cache = world.fresh("stale-encoder")
    encoder = world.encoder("wordllama")
    embeddings(encoder, world.prompts[:8], cache=cache)
    with torch.no_grad():
        encoder.model.weight.mul_(1.01)
    embeddings(encoder, world.prompts[:8], cache=cache, must_exist=True)
    return []


@fault("stale cache: crop or size changed", threads="OneTrainer 175", gate="cache key", code="SK0404", stage="data")
def stale_size(world: World) -> list[GateResult]:
    cache, vae, dataset = filled(world, "stale-size")
    raw_latents(vae, dataset, 64, cache=cache, must_exist=True)
    return []


@fault(
    "stale cache: an image changed under its name",
    threads="OneTrainer 175",
    gate="cache key",
    code="SK0404",
    stage="data",
)
def stale_image(world: World) -> list[GateResult]:
    cache, vae, dataset = filled(world, "stale-image")
    changed = replace(dataset, images=[world.image_set.images[20], *dataset.images[1:]])
    raw_latents(vae, changed, 32, cache=cache, must_exist=True)
    return []


@contextmanager
def read_as(decode: Callable[[bytes, int], np.ndarray]) -> Iterator[None]:
    """Images read by another program's rules, as a cache written elsewhere holds them."""
    from sanakit.data import table as base

    right_decode = base.decode
    base.decode = decode
    try:
        yield
    finally:
        base.decode = right_decode


def photographs(alpha: bool) -> ImageDataset:
    """Upright on disk only by an EXIF tag, or with a transparent ground."""
    import io

    images = []
    for seed in range(16):
        noise = np.random.default_rng(seed).integers(256, size=(8, 8, 4), dtype=np.uint8)
        noise[..., 3] = 255 if not alpha else noise[..., 3]
        image, out = Image.fromarray(noise).resize((64, 48)), io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(out, "PNG", **({} if alpha else {"exif": exif}))
        images.append(out.getvalue())
    return ImageDataset(source="photographs", names=[str(i) for i in range(16)], captions=[["a"]] * 16, images=images)


def naive_decode(data: bytes, size: int, fit: str) -> np.ndarray:
    """Neither EXIF nor alpha is read."""
    import io

    with Image.open(io.BytesIO(data)) as file:
        return np.asarray(Image.fromarray(np.asarray(file.convert("RGBA"))[..., :3]).resize((size, size)))


@fault(
    "EXIF rotation ignored by the program that filled the cache",
    threads="OneTrainer 175",
    gate="spot check",
    code="SK0404",
    stage="data",
)
def exif(world: World) -> list[GateResult]:
    with read_as(naive_decode):
        cache, vae, dataset = filled(world, "exif", photographs(alpha=False))
    raw_latents(vae, dataset, 32, cache=cache)
    return []


@fault(
    "alpha ignored by the program that filled the cache",
    threads="OneTrainer 175",
    gate="spot check",
    code="SK0404",
    stage="data",
)
def alpha(world: World) -> list[GateResult]:
    with read_as(naive_decode):
        cache, vae, dataset = filled(world, "alpha", photographs(alpha=True))
    raw_latents(vae, dataset, 32, cache=cache)
    return []


@fault("a shard of the cache is damaged", gate="shard hash", code="SK0404", stage="data")
def shard(world: World) -> list[GateResult]:
    cache, vae, dataset = filled(world, "shard")
    path = next(cache.rglob("0*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)
    raw_latents(vae, dataset, 32, cache=cache)
    return []


@fault(
    "samples dropped silently",
    threads="webdataset warn_and_continue; CLIP_benchmark 88",
    gate="ledger",
    code="SK0402",
    stage="data",
)
def dropped(world: World) -> list[GateResult]:
    some = world.image_set.subset(range(20))
    broken = replace(
        some, images=[data[: len(data) // 3] if i % 4 == 0 else data for i, data in enumerate(some.images)]
    )
    screen(broken, max_set_aside=0.05)
    return []
