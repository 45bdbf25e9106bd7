"""Whether a data set is encoded ahead or live: ahead where the free disk holds it."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

LATENT_BYTES = 4 + 2  # a value's mean in fp32, and its deviation in bfloat16 where there is a posterior
VIEWS = 2  # the mirrored image is encoded too
EMBEDDING_BYTES = 2
SHARE = 0.8  # of the free disk


def bytes_ahead(
    num_images: int,
    num_captions: int,
    latents: Sequence[tuple[int, int, int]],
    embeddings: Sequence[tuple[int, int]],
) -> dict[str, int]:
    """What the cache would take at most. latents: (C, h, w) of every VAE. embeddings: (L, D) of every text encoder;
    padding is counted, as the captions' lengths are not known before they are encoded."""
    return {
        "latents": sum(num_images * VIEWS * math.prod(shape) * LATENT_BYTES for shape in latents),
        "embeddings": sum(num_captions * tokens * (width * EMBEDDING_BYTES + 1) for tokens, width in embeddings),
    }


def choose_ahead(
    *,
    num_images: int,
    num_captions: int,
    latents: Sequence[tuple[int, int, int]],
    embeddings: Sequence[tuple[int, int]],
    free: int,
    filled: bool = False,
) -> dict[str, str]:
    """{"latents", "embeddings"}: `ahead` or `live`. Latents come first, as images cost more to decode and encode.
    filled: the cache is there already (data.cache), so that nothing is written."""
    needed = bytes_ahead(num_images, num_captions, latents, embeddings)
    left, chosen = SHARE * free, {}
    for name in ("latents", "embeddings"):
        chosen[name] = "ahead" if filled or needed[name] <= left else "live"
        left -= needed[name] if chosen[name] == "ahead" else 0
    return chosen


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that a folder lies on, or will."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
