"""What statistics see of a latent or an embedding: one row per image or prompt, in named blocks.

Pixels of one image and tokens of one prompt are not independent samples; images and prompts are.
"""

from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from sanakit.drift.spectra import OCTAVES, ring_blocks

FLOOR = 1e-6
FLAT = 1e-4  # steps below this share of the spread are rounding
CORRELATED = 64  # correlations of at most so many channels, evenly spaced: pairs grow with the square
RINGS = {
    "middle": "frequencies of 1/4 to 1/2 of Nyquist",
    "fine": "frequencies of 1/2 to 1 of Nyquist",
    "corner": "frequencies in the corner of the spectrum",
}
QUANTILES = {"low": 0.05, "median": 0.5, "high": 0.95}

Blocks = dict[str, Tensor]

MOMENTS = ("mean", "log-sd", "skewness", "kurtosis")
OF_LATENTS = ("mean", "log-sd", "low", "median", "high", "grain", "middle", "fine", "corner", "rings")
STRUCTURED = (*OF_LATENTS, "norms")  # of either kind
BLOCKS = {  # every name that a block of a kind can have
    "latents": (*MOMENTS, *QUANTILES, "grain", *RINGS, "rings", "power", "correlation"),
    "embeddings": ("mean", "log-sd", "norms"),
}


def latent_blocks(latents: Tensor) -> Blocks:
    """(N, C, h, w) -> blocks (N, C): mean, log-sd, skewness, kurtosis, low, median, high, grain (`smallest_steps`),
    middle, fine and corner (log power in rings of frequencies, `spectra.ring_blocks`); rings (N, 6) and power (N, K),
    the same over all channels; correlation (N, pairs), Fisher z."""
    channels, height, width = latents.shape[1:]
    values = latents.float().flatten(2)  # (N, C, hw)
    mean = values.mean(-1)
    blocks: Blocks = {"mean": mean}
    if height * width < 4:
        return blocks
    centred = values - mean[..., None]
    variance = centred.square().mean(-1)
    std = variance.sqrt().clamp_min(FLOOR)
    scaled = centred / std[..., None]
    blocks |= {"log-sd": std.log(), "skewness": scaled.pow(3).mean(-1), "kurtosis": scaled.pow(4).mean(-1) - 3}
    ordered = values.sort(-1).values
    blocks |= {name: ordered[..., round(q * (height * width - 1))] for name, q in QUANTILES.items()}

    grid = centred.unflatten(2, (height, width))
    blocks["grain"] = smallest_steps(grid, std)
    blocks |= ring_blocks(grid, std)
    if channels > 1:
        chosen = correlated_channels(channels)
        matrix = scaled[:, chosen] @ scaled[:, chosen].mT / (height * width)
        upper = torch.triu_indices(len(chosen), len(chosen), 1)
        blocks["correlation"] = matrix[:, upper[0], upper[1]].clamp(-0.999, 0.999).atanh()
    return blocks


def smallest_steps(centred: Tensor, std: Tensor) -> Tensor:
    """(N, C, h, w) and its (N, C) spreads -> (N, C): log of the lower quartile of the steps between neighbours that are
    not flat. Compression, resizing and denoising change the smallest steps first, long before means or spreads."""
    across, down = centred.diff(dim=3).flatten(2), centred.diff(dim=2).flatten(2)
    steps = torch.cat([across, down], 2).abs()
    steps = steps.masked_fill(steps < FLAT * std[..., None], torch.inf).sort(-1).values  # flat ones last
    rank = (steps.isfinite().sum(-1, keepdim=True) - 1).clamp_min(0).mul(0.25).round().long()
    return steps.gather(-1, rank)[..., 0].nan_to_num(posinf=0).clamp_min(FLOOR).log()


def embedding_blocks(embeddings: Tensor, mask: Tensor) -> Blocks:
    """(N, L, D) with mask (N, L), 1 = keep -> mean and log-sd over kept tokens (N, D); norms (N, 3): log of the median
    token norm, log of the largest over it (outlier tokens), log of the number of tokens."""
    keep = mask.bool()
    weights, values = keep[..., None].float(), embeddings.float()
    tokens = weights.sum(1).clamp_min(1)  # (N, 1)
    mean = (values * weights).sum(1) / tokens
    variance = ((values - mean[:, None]).square() * weights).sum(1) / tokens
    norm = values.norm(dim=-1).masked_fill(~keep, torch.nan)
    median = norm.nanmedian(1).values.nan_to_num(0).clamp_min(FLOOR)
    largest = norm.nan_to_num(0).amax(1).clamp_min(FLOOR)
    norms = torch.stack([median.log(), (largest / median).log(), tokens[:, 0].log()], 1)
    return {"mean": mean, "log-sd": variance.sqrt().clamp_min(FLOOR).log(), "norms": norms}


def correlated_channels(channels: int) -> list[int]:
    return np.unique(np.linspace(0, channels - 1, min(channels, CORRELATED)).round().astype(int)).tolist()


def block_names(block: str, columns: int, channels: int) -> list[str]:
    """What the columns of a block are, as readings say it."""
    if block == "norms":
        return ["token norm", "largest token norm over the median", "tokens a prompt"]
    if block == "power":
        return [f"frequency ring {k + 1} of {columns}" for k in range(columns)]
    if block == "rings":
        return [f"all channels, {RINGS[name]}, {kind}" for kind in ("share", "power") for name in OCTAVES]
    if block == "correlation":
        pairs = combinations(correlated_channels(channels), 2)
        return [f"channels {a} and {b} correlation" for a, b in pairs]
    label = {"low": "5% quantile", "high": "95% quantile", "grain": "smallest steps"}
    label |= RINGS | {"log-sd": "spread"}
    return [f"channel {k} {label.get(block, block)}" for k in range(columns)]
