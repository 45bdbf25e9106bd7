"""Did the distribution move? Tensors, arrays, encoded prompts, files, folders of `encode`, runs or snapshots."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanakit.api.options import as_number, as_seed
from sanakit.drift.compare import Comparison
from sanakit.drift.compare import compare as compare_samples
from sanakit.drift.files import data_of
from sanakit.drift.page import write_page
from sanakit.drift.read import read_samples
from sanakit.drift.sample import Sample, sample_embeddings, sample_latents
from sanakit.errors import SanakitError
from sanakit.text_encoders import PromptEmbeds

KEPT = "expected 1 = keep, 0 = padding"
ADDITIVE = "Give the tokenizer's attention_mask; a mask of 0 and -10000 that is added to attention is another thing."


def compare(
    reference: Any,
    current: Any,
    *,
    reference_mask: Any = None,
    current_mask: Any = None,
    alpha: float = 0.05,
    seed: int = 0,
    html: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Two sides compared by every statistic, with one verdict: no-drift, drift or inconclusive.

    A side is latents (N, C, h, w), embeddings (N, L, D) with their mask (N, L), 1 = keep, or `PromptEmbeds`; or the
    path of a .safetensors file, a folder of `sanakit encode`, a run folder or a snapshot. alpha: bound on false alarms
    of the whole comparison. html: where a page is written. Raises SK0701 for a side that cannot be read, SK0702 for
    sides that cannot be compared, SK0704 for an empty one.
    """
    sides = [(reference, reference_mask, "reference"), (current, current_mask, "current")]
    alpha, seed = as_number("alpha", alpha, above=0, below=1), as_seed(seed)
    sources = [_source(values) for values, _, _ in sides]
    first, second = (
        _samples(values, mask, label, source, seed)
        for (values, mask, label), source in zip(sides, sources, strict=True)
    )
    comparison = compare_samples(first, second, alpha=alpha, seed=seed)
    if html is not None:
        labels = [
            label if source is None else str(source) for (_, _, label), source in zip(sides, sources, strict=True)
        ]
        write_page(
            comparison,
            first,
            second,
            Path(html).expanduser(),
            sources=(sources[0], sources[1]),
            labels=(labels[0], labels[1]),
        )
    return comparison


def _source(values: Any) -> Path | None:
    return data_of(Path(values).expanduser()) if isinstance(values, str | os.PathLike) else None


def _samples(values: Any, mask: Any, label: str, source: Path | None, seed: int) -> dict[str, Sample]:
    """{kind: sample} of a side."""
    if source is not None:
        if mask is not None:
            raise SanakitError("SK0701", f"{label}: {source} holds its own mask, found another", fix="Leave it out.")
        return read_samples(source, seed=seed)
    if isinstance(values, PromptEmbeds):
        values, mask = values.embeds, values.mask if mask is None else mask
    tensor = as_tensor(values, label)
    if tensor.ndim == 4 and mask is None:
        return {"latents": sample_latents(tensor.cpu(), seed=seed)}
    if tensor.ndim == 3 and mask is not None:
        return {"embeddings": sample_embeddings(tensor.cpu(), as_mask(mask, f"{label}_mask").cpu(), seed=seed)}
    described = f"{tuple(tensor.shape)} {'without' if mask is None else 'with'} a mask"
    raise SanakitError(
        "SK0701",
        f"{label} is {described}, expected latents (N, C, h, w), or embeddings (N, L, D) with a mask (N, L)",
        fix="Give reference_mask and current_mask for embeddings; of prompts without padding torch.ones(N, L).",
    )


def as_tensor(values: Any, label: str) -> Tensor:
    """A tensor or an array of real numbers as a tensor. Raises SK0701."""
    if isinstance(values, Tensor) and not values.is_complex() and values.layout == torch.strided:
        return values.detach()
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub" and values.dtype.itemsize <= 8:
        native = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
        return torch.from_numpy(native if native.flags.writeable else native.copy())
    kind = type(values).__name__
    if isinstance(values, Tensor | np.ndarray):
        kind += f" of {getattr(values, 'layout', '')} {values.dtype}".replace("torch.strided ", "").replace("  ", " ")
    raise SanakitError("SK0701", f"{label} is a {kind}, expected a tensor or an array of real numbers, or a path")


def as_mask(mask: Any, label: str, *, checked: bool = True) -> Tensor:
    """A mask as a tensor of truth values. checked: other values than 0 and 1 are refused with SK0701, for which the
    host waits for the device; otherwise they keep nothing."""
    tensor = as_tensor(mask, label)
    if tensor.dtype == torch.bool:
        return tensor
    if checked and bool(((tensor != 0) & (tensor != 1)).any()):
        low, high = float(tensor.min()) + 0.0, float(tensor.max()) + 0.0  # -0.0 reads as 0
        raise SanakitError("SK0701", f"{label} holds values from {low:g} to {high:g}, {KEPT}", fix=ADDITIVE)
    return tensor == 1
