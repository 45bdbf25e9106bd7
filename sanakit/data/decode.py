"""Images to pixels for an encoder, those that cannot be read marked; and what an image is known by."""

import numpy as np
import torch
from torch import Tensor

from sanakit.data import store
from sanakit.data.buckets import Size
from sanakit.data.images import row_content
from sanakit.data.survey import reason_of
from sanakit.data.table import ImageDataset
from sanakit.vaes import VAE


def sides_of(size: int | Size) -> Size:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def mark_failed(encoded: dict[str, Tensor], failed: list[int]) -> dict[str, Tensor]:
    """Encoded images with `failed` (N,) bool; of one that failed everything is zero."""
    for tensor in encoded.values():
        tensor[failed] = 0
    failed_rows = torch.zeros(len(encoded["raw_latents"]), dtype=torch.bool)
    failed_rows[failed] = True
    return encoded | {"failed": failed_rows}


def encode_views(vae: VAE, images: Tensor, *, mirror: bool) -> dict[str, Tensor]:
    """raw_latents (B, M, C, h, w), M is 2 with the mirrored image second, and raw_std in bfloat16 where the VAE has a
    posterior. images: (B, 3, H, W) in [-1, 1]."""
    seen = (images, images.flip(-1)) if mirror else (images,)
    means, stds = zip(*(vae.encode_posterior(view) for view in seen), strict=True)
    tensors = {"raw_latents": torch.stack(means, 1)}
    if stds[0] is not None:
        tensors["raw_std"] = torch.stack(stds, 1).bfloat16()
    return tensors


def decode_rows(dataset: ImageDataset, size: int | Size) -> tuple[np.ndarray, dict[int, str]]:
    """Pixels (N, h, w, 3) of every image, zeros and the reason for one that cannot be read or decoded."""
    height, width = sides_of(size)
    out, failed = np.zeros((len(dataset), height, width, 3), np.uint8), {}
    for row in range(len(dataset)):
        try:
            out[row] = dataset.subset([row]).pixels(size)[0]
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises anything on a damaged file, and the others are to be encoded
            failed[row] = reason_of(error)
    return out, failed


def row_keys(dataset: ImageDataset) -> Tensor:
    """(N,) int64 of every image's bytes; an index has them."""
    if dataset.indexed is not None:
        return torch.from_numpy(dataset.indexed.numbers("key"))
    return store.row_hashes(row_content(image) for image in dataset.images)
