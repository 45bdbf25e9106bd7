"""What experiments/benchmarks/scale.py measures on: small images in shards, a small system, and a process's memory."""

import ctypes
import gc
import io
import json
import math
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHARD = 1000  # images of a shard
SIDE = 48  # pixels
LIVE = {"live_latents": True, "live_embeddings": True}
CORE = {
    "in_channels": 32, "out_channels": 32, "num_attention_heads": 8, "attention_head_dim": 32, "num_layers": 4,
    "num_cross_attention_heads": 8, "cross_attention_head_dim": 32, "cross_attention_dim": 256,
    "caption_channels": 256, "sample_size": 3, "patch_size": 1,
}  # fmt: skip


def make_shards(folder: Path, count: int) -> str:
    """Tar shards of `count` images with captions, made once. Returns their pattern.

    A shard's images are 100 JPEGs, each made another file by a comment of its own: 200,000 are written in a minute.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = math.ceil(count / SHARD)
    for number in range(shards):
        path = folder / f"{number:05d}.tar"
        if path.is_file():
            continue
        images = make_images(100, seed=number)
        with tarfile.open(path.with_suffix(".tmp"), "w") as tar:
            for i in range(number * SHARD, min(count, (number + 1) * SHARD)):
                content = commented(images[i % len(images)], f"{i:012d}")
                for name, data in ((f"{i:08d}.jpg", content), (f"{i:08d}.txt", f"image {i}".encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        path.with_suffix(".tmp").replace(path)
    return str(folder / f"{{00000..{shards - 1:05d}}}.tar")


def make_images(count: int, seed: int) -> list[bytes]:
    """Smooth random JPEGs of SIDE x SIDE pixels."""
    rng, images = np.random.default_rng(seed), []
    for _ in range(count):
        buffer, small = io.BytesIO(), rng.integers(256, size=(6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        images.append(buffer.getvalue())
    return images


def commented(jpeg: bytes, text: str) -> bytes:
    """The same image with a comment segment after its first marker: other bytes, other hash."""
    comment = text.encode("ascii")
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2) + comment + jpeg[2:]


def make_system(**core: Any) -> Any:
    """A PCA autoencoder, the static table of WordLlama, and a new core."""
    from sanakit.assembly import LatentDiffusion
    from sanakit.core.dit import new_core
    from sanakit.loading import load_text_encoder, load_vae

    parts: dict[str, Any] = {"vae": load_vae("pca-f16c32"), "text_encoder": load_text_encoder("wordllama")}
    return LatentDiffusion(**parts, core=new_core(CORE | core, seed=0), image_size=SIDE)


def make_splits(system: Any, pattern: str, side: int = SIDE, **options: Any) -> list[Any]:
    """Training and held-out images of shards, as training reads them."""
    from sanakit.data import load_images
    from sanakit.data.dataset import build_dataset

    images = load_images(pattern)
    splits = [(images.split(held_out), not held_out) for held_out in (False, True)]
    return [
        build_dataset(system.vae, system.text_encoder, split, side, mirror=mirror, **options)
        for split, mirror in splits
    ]


def train_state(system: Any, options: Any) -> Any:
    from sanakit.training.loop import new_state

    groups = [{"params": list(system.core.parameters()), "scale": 1.0, "name": "core"}]
    return new_state(system.core, groups, options)


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """{start, peak}: this process's own memory (anonymous pages, MiB), sampled every 5 ms. Pages of mapped files are
    left out, as the system takes them back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not taken for free room
    memory = {"start": own_memory(), "peak": own_memory()}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            memory["peak"] = max(memory["peak"], own_memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        stop.set()
        thread.join()
        memory["peak"] = max(memory["peak"], own_memory())


def own_memory() -> float:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition("RssAnon:")[2].split()[0]) / 1024


def command(name: str, *arguments: Any) -> list[str]:
    """A function of scale_children.py as a command."""
    return [sys.executable, str(Path(__file__).with_name("scale_children.py")), name, json.dumps(arguments)]


def apart(name: str, *arguments: Any, launcher: tuple[str, ...] = ()) -> Any:
    """The result of a function of scale_children.py in a process of its own. launcher: a module that starts it."""
    words = command(name, *arguments)
    if launcher:
        words = [words[0], "-m", *launcher, *words[1:]]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    if told.returncode:
        raise RuntimeError(f"{name}: {told.stderr[-4000:]}")
    return json.loads(told.stdout.splitlines()[-1])
