"""The cache of raw latents and embeddings, keyed by everything that determines them.

Key: weights, class and geometry of the encoder, names and bytes of the pictures (or the captions), size, mirroring,
and the major versions of torch, diffusers and transformers. Raw latents are posterior means (the mode; the
posterior's spread is not kept), so another normalisation never rebuilds a cache.
"""

import importlib.metadata
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sanakit.data.base import Pictures, cache_dir
from sanakit.errors import SanakitError
from sanakit.hashing import hash_record
from sanakit.text_encoders import PromptEmbeds, TextEncoder
from sanakit.vaes import VAE

BATCH_SIZE = 32
Progress = Callable[[str, int, int], None]  # label, done, total


def silent(label: str, done: int, total: int) -> None:
    """No progress shown."""


def to_images(pixels: Any) -> Tensor:
    """(N, S, S, 3) uint8 array -> (N, 3, S, S) float in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def raw_latents(
    vae: VAE, pictures: Pictures, size: int, *, mirror: bool = False, progress: Progress = silent
) -> Tensor:
    """Raw latents (N, M, C, h, w); M is 2 with the mirrored picture second. Computed once, then read."""
    facts = {
        "kind": "latents",
        "encoder": vae.fingerprint(),
        "pictures": pictures.fingerprint,
        "size": size,
        "mirror": mirror,
        "mode": "posterior mean",
        "dtype": "float32",
        "libraries": _versions(),
    }

    def compute() -> dict[str, Tensor]:
        rows = []
        for start in range(0, len(pictures), BATCH_SIZE):
            batch = pictures.subset(range(start, min(start + BATCH_SIZE, len(pictures))))
            images = to_images(batch.pixels(size))
            views = [vae.encode_raw(images)]
            if mirror:
                views.append(vae.encode_raw(images.flip(-1)))
            rows.append(torch.stack(views, 1))
            progress(f"encoding with {vae.name}", min(start + BATCH_SIZE, len(pictures)), len(pictures))
        return {"raw_latents": torch.cat(rows)}

    return _load_or(facts, compute)["raw_latents"]


def embeddings(encoder: TextEncoder, prompts: list[str], *, progress: Progress = silent) -> PromptEmbeds:
    """Embeddings of prompts, kept in half precision on disk and in memory."""
    facts = {
        "kind": "embeddings",
        "encoder": encoder.fingerprint(),
        "prompts": hash_record(prompts),
        "libraries": _versions(),
    }

    def compute() -> dict[str, Tensor]:
        parts, truncated = [], 0
        for start in range(0, len(prompts), 128):
            part = encoder.encode(prompts[start : start + 128])
            truncated += part.truncated
            parts.append((part.embeds.half(), part.mask))
            progress(f"encoding prompts with {encoder.name}", min(start + 128, len(prompts)), len(prompts))
        embeds, masks = zip(*parts, strict=True)
        embeds_all = torch.cat(embeds)
        if not embeds_all.isfinite().all():
            raise SanakitError("SK0301", f"{encoder.name} gives embeddings that are not finite in half precision")
        return {"embeds": embeds_all, "mask": torch.cat(masks), "truncated": torch.tensor(truncated)}

    found = _load_or(facts, compute)
    return PromptEmbeds(found["embeds"], found["mask"], int(found["truncated"]))


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name).split(".")[0] for name in ("torch", "diffusers", "transformers")}


def _load_or(facts: dict[str, Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    path = cache_dir() / f"{facts['kind']}-{hash_record(facts)[:20]}.safetensors"
    if path.is_file():
        _check(path, facts)
        return load_file(path)
    tensors = compute()
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"facts": json.dumps(facts)})
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SanakitError("SK0903", f"cannot write {path}: {error}") from error
    return tensors


def _check(path: Path, facts: dict[str, Any]) -> None:
    """A cache file states its own key; one that was renamed or damaged is refused, with the field that differs."""
    try:
        with safe_open(path, "pt") as file:
            stated = json.loads((file.metadata() or {}).get("facts", "{}"))
    except Exception as error:  # safetensors raises its own type for damage
        raise SanakitError("SK0404", f"{path} is damaged: {error}") from error
    for key, value in facts.items():
        if stated.get(key) != value:
            raise SanakitError("SK0404", f"{path}: {key} is {stated.get(key)}, expected {value}")


@dataclass(kw_only=True)
class LatentDataset:
    """Normalised latents with their prompts, in memory.

    latents: (N, M, C, h, w), M views of a picture. captions: every caption of every picture. first, count: (N,)
    where a picture's captions lie in `captions`.
    """

    names: list[str]
    latents: Tensor
    captions: PromptEmbeds
    first: Tensor
    count: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def prompts(self, indices: Tensor, choice: Tensor) -> PromptEmbeds:
        """Caption number `choice` modulo the picture's count, for every index."""
        rows = self.first[indices] + choice % self.count[indices]
        return PromptEmbeds(self.captions.embeds[rows].float(), self.captions.mask[rows])


def build_dataset(
    vae: VAE, encoder: TextEncoder, pictures: Pictures, size: int, *, mirror: bool, progress: Progress = silent
) -> LatentDataset:
    raw = raw_latents(vae, pictures, size, mirror=mirror, progress=progress)
    count = torch.tensor([len(c) for c in pictures.captions])
    return LatentDataset(
        names=pictures.names,
        latents=vae.normalize(raw.flatten(0, 1)).unflatten(0, raw.shape[:2]),
        captions=embeddings(encoder, [c for captions in pictures.captions for c in captions], progress=progress),
        first=count.cumsum(0) - count,
        count=count,
    )
