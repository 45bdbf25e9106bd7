"""One side of a comparison: image-level features of latents or embeddings, read in chunks from any source.

A source is a .safetensors file (`latents` (N, C, h, w) or `raw_latents` (N[, M views], C, h, w); `embeddings` or
`embeds` (N, L, D) with `attention_mask` or `mask` (N, L)), a folder of such shards, or a snapshot. A snapshot is one
safetensors file whose header holds the facts as JSON: sufficient statistics of all rows, features of a random
subset, and its own content hash.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanakit.drift.channel_moments import ChannelMoments
from sanakit.drift.features import block_names, embedding_blocks, latent_blocks
from sanakit.errors import SanakitError

CHUNK = 256
MOST_ROWS = 8192  # features kept in memory
LATENTS = {"latents": "normalised", "raw_latents": "raw"}
EMBEDDINGS = {"embeddings": "attention_mask", "embeds": "mask"}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """kind: latents or embeddings. facts: what both sides must share. count: samples seen, those set aside included.
    set_aside: samples with NaN or Inf. nonfinite: such values a channel. blocks: features (rows, k) of the finite
    samples, at most 8,192 of them drawn at random; rows: their indices. moments: of all finite values a channel."""

    kind: str
    facts: dict[str, Any]
    count: int
    set_aside: int
    nonfinite: tuple[int, ...]
    rows: np.ndarray
    blocks: dict[str, np.ndarray]
    moments: ChannelMoments | None
    digest: str

    @property
    def channels(self) -> int:
        return int(self.facts["channels"])

    def matrix(self, *blocks: str) -> np.ndarray:
        """(rows, columns) of the blocks that there are."""
        chosen = [self.blocks[b] for b in blocks if b in self.blocks]
        return np.concatenate(chosen, 1) if chosen else np.empty((len(self.rows), 0), np.float32)

    def names(self, *blocks: str) -> list[str]:
        return [
            name for b in blocks if b in self.blocks for name in block_names(b, self.blocks[b].shape[1], self.channels)
        ]


def sample_latents(latents: Tensor, *, normalisation: str = "normalised", seed: int = 0) -> Sample:
    """(N, C, h, w) in memory. Raises SK0704 when empty, SK0701 at another rank."""
    return collect("latents", [Part({"latents": latents}, "latents", None)], {"normalisation": normalisation}, seed)


def sample_embeddings(embeddings: Tensor, mask: Tensor, *, seed: int = 0) -> Sample:
    """(N, L, D) with mask (N, L), 1 = keep."""
    parts = [Part({"embeddings": embeddings, "mask": mask}, "embeddings", "mask")]
    return collect("embeddings", parts, {"normalisation": "none"}, seed)


@dataclass(frozen=True)
class Part:
    """A tensor that is read in chunks: a dictionary of tensors or an open file."""

    tensors: Any
    name: str
    mask: str | None

    def view(self, name: str) -> Any:
        return self.tensors[name] if isinstance(self.tensors, dict) else self.tensors.get_slice(name)

    @property
    def shape(self) -> tuple[int, ...]:
        tensor = self.view(self.name)
        return tuple(tensor.shape if hasattr(tensor, "shape") else tensor.get_shape())

    def chunks(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """One view of a image: its mirror image is no further sample."""
        tensor, mask = self.view(self.name), self.view(self.mask) if self.mask else None
        for start in range(0, self.shape[0], CHUNK):
            rows = tensor[start : start + CHUNK]
            yield rows[:, 0] if rows.ndim == 5 else rows, None if mask is None else mask[start : start + CHUNK]


def collect(kind: str, parts: list[Part], facts: dict[str, Any], seed: int, source: Path | str = "memory") -> Sample:
    """One sample of all parts, read in chunks. Raises SK0701, SK0702 or SK0704."""
    shape, total = _common_shape(kind, parts, source)
    if kind == "latents":
        facts = facts | {"channels": shape[-3], "height": shape[-2], "width": shape[-1]}
    else:
        facts = facts | {"channels": shape[-1]}
    chosen = np.zeros(total, bool)
    chosen[np.random.default_rng(seed).choice(total, min(total, MOST_ROWS), replace=False)] = True
    collector = _Collector(kind, facts, chosen)
    for part in parts:
        for values, mask in part.chunks():
            collector.add(values, mask, source)
    return collector.sample()


def _common_shape(kind: str, parts: list[Part], source: Path | str) -> tuple[tuple[int, ...], int]:
    """The shape of a row, which all parts share, and the number of rows. Raises SK0701, SK0702 or SK0704."""
    for part in parts:
        wanted = (4, 5) if part.name in LATENTS else (3,)
        if len(part.shape) not in wanted or 0 in part.shape[1:]:
            expected = "(N, C, h, w)" if part.name in LATENTS else "(N, L, D)"
            raise SanakitError("SK0701", f"{source}: `{part.name}` is {part.shape}, expected {expected}")
    total = sum(part.shape[0] for part in parts)
    if total == 0:
        raise SanakitError(
            "SK0704", f"{source} holds 0 {'images' if kind == 'latents' else 'prompts'}, expected 32 or more"
        )
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise SanakitError("SK0702", f"shards of {source} differ in shape: {sorted(shapes)}")
    return shapes.pop(), total


class _Collector:
    """What a sample keeps of chunks that are read once: counts and moments of all rows, features of the chosen ones."""

    def __init__(self, kind: str, facts: dict[str, Any], chosen: np.ndarray) -> None:
        self.kind, self.facts, self.chosen = kind, facts, chosen
        self.digest = hashlib.sha256(json.dumps([kind, facts], sort_keys=True).encode())
        self.blocks: list[dict[str, Tensor]] = []
        self.indices: list[Tensor] = []
        self.moments: ChannelMoments | None = None
        self.nonfinite = torch.zeros(facts["channels"], dtype=torch.long)
        self.set_aside, self.start = 0, 0

    def add(self, values: Tensor, mask: Tensor | None, source: Path | str) -> None:
        """The next chunk: latents (n, C, h, w), or embeddings (n, L, D) with their mask (n, L). Raises SK0701."""
        self.digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
        values = values.float()
        if mask is not None:
            self.digest.update(mask.contiguous().view(torch.uint8).numpy().tobytes())
            if mask.shape != values.shape[:2]:
                raise SanakitError(
                    "SK0701", f"{source}: mask is {tuple(mask.shape)}, expected {tuple(values.shape[:2])}"
                )
            if not ((mask == 0) | (mask == 1)).all():
                raise SanakitError("SK0701", f"{source}: mask holds other values than 1 (keep) and 0")
            values = values.masked_fill(~mask.bool()[..., None], 0)
        bad = ~values.isfinite()
        self.nonfinite += bad.movedim(1, -1).flatten(0, -2).sum(0) if mask is None else bad.flatten(0, 1).sum(0)
        finite = ~bad.flatten(1).any(1)
        self.set_aside += int((~finite).sum())
        self._add_moments(values[finite], None if mask is None else mask[finite])
        keep = finite & torch.from_numpy(self.chosen[self.start : self.start + len(values)])
        if keep.any():
            kept = latent_blocks(values[keep]) if mask is None else embedding_blocks(values[keep], mask[keep])
            self.blocks.append(kept)
            self.indices.append(self.start + keep.nonzero()[:, 0])
        self.start += len(values)

    def _add_moments(self, sound: Tensor, mask: Tensor | None) -> None:
        if not len(sound):
            return
        tokens = sound if mask is None else sound[mask.bool()]
        if len(tokens):
            part = ChannelMoments.of(tokens)
            self.moments = part if self.moments is None else self.moments.merge(part)

    def sample(self) -> Sample:
        blocks = {name: torch.cat([b[name] for b in self.blocks]).numpy() for name in (self.blocks or [{}])[0]}
        return Sample(
            kind=self.kind,
            facts=self.facts,
            count=self.start,
            set_aside=self.set_aside,
            nonfinite=tuple(self.nonfinite.tolist()),
            rows=torch.cat(self.indices).numpy() if self.indices else np.empty(0, int),
            blocks=blocks,
            moments=self.moments,
            digest=self.digest.hexdigest(),
        )


def subset(sample: Sample, index: np.ndarray) -> Sample:
    """Some rows of a sample; moments and counts stay those of the whole."""
    return replace(sample, rows=sample.rows[index], blocks={k: v[index] for k, v in sample.blocks.items()})
