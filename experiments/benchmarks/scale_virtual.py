"""Data sets of ten million images that are made where they are read: what a statistic keeps of them is measured."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanakit.data.dataset import LatentDataset
from sanakit.text_encoders import PromptEmbeds

KEPT = 20  # tokens of a caption


class VirtualLatents:
    """(N, M, C, h, w) normal numbers; a row is drawn when it is read."""

    def __init__(self, *shape: int) -> None:
        self.shape = torch.Size(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Tensor:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        rows = torch.arange(first.start or 0, first.stop) if isinstance(first, slice) else torch.as_tensor(first)
        drawn = torch.randn(len(rows), *self.shape[1:], generator=torch.Generator().manual_seed(int(rows[0])))
        if not rest:
            return drawn
        view = rest[0]
        return drawn[torch.arange(len(rows)), view] if isinstance(view, Tensor) else drawn[:, view]


class VirtualCaptions:
    """Embeddings (N, L, D) in half precision, KEPT tokens of each kept."""

    def __init__(self, count: int, tokens: int, width: int) -> None:
        self.shape = (count, tokens, width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> PromptEmbeds:
        rows = range(key.start or 0, min(key.stop, len(self))) if isinstance(key, slice) else key.tolist()
        embeds = torch.zeros(len(rows), *self.shape[1:], dtype=torch.float16)
        mask = torch.zeros(len(rows), self.shape[1], dtype=torch.bool)
        mask[:, :KEPT] = True
        drawn = torch.randn(len(rows), KEPT, self.shape[2], generator=torch.Generator().manual_seed(rows[0]))
        embeds[:, :KEPT] = drawn.half()
        return PromptEmbeds(embeds, mask)


def virtual_dataset(count: int, latents: tuple[int, int, int], tokens: int, width: int) -> LatentDataset:
    """count images with a caption each, both views."""
    return LatentDataset(
        names=range(count),  # type: ignore[arg-type]
        latents=VirtualLatents(count, 2, *latents),  # type: ignore[arg-type]
        captions=VirtualCaptions(count, tokens, width),  # type: ignore[arg-type]
        first=torch.arange(count),
        count=torch.ones(1, dtype=torch.long).expand(count),
    )


class VirtualJob:
    """An entry of the store that was found whole; its rows are virtual."""

    def __init__(self, folder: Path, kind: str, tensors: dict[str, Any], count: int) -> None:
        self.facts, self.rows, self.tensors = {"kind": kind}, range(count), tensors
        self.folder, self.manifest, self.nbytes = folder / f"{kind}-virtual", {"count": count}, 0

    def run(self, out: Path) -> tuple[Any, dict[str, Any], bool]:
        return self, self.tensors, True


class Embeds:
    """The embeddings of virtual captions as a tensor that is read by row."""

    def __init__(self, captions: VirtualCaptions, name: str) -> None:
        self.captions, self.name = captions, name
        self.shape = torch.Size(captions.shape if name == "embeds" else captions.shape[:2])

    def __getitem__(self, key: Any) -> Tensor:
        rows: Tensor = getattr(self.captions[key], self.name)
        return rows
