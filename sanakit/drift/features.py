"""What statistics see of a latent or an embedding: one row a picture or prompt, in named blocks.

Pixels of one picture and tokens of one prompt are not independent samples; pictures and prompts are.
"""

from itertools import combinations

import numpy as np
import torch
from torch import Tensor

FLOOR = 1e-6
FLAT = 1e-4  # steps below this share of the spread are rounding
CORRELATED = 64  # correlations of at most so many channels, evenly spaced: pairs grow with the square
QUANTILES = {"low": 0.05, "median": 0.5, "high": 0.95}

Blocks = dict[str, Tensor]


def latent_blocks(latents: Tensor) -> Blocks:
    """(N, C, h, w) -> blocks (N, C): mean, log-sd, skewness, kurtosis, low, median, high, grain (`smallest_steps`), band
    (log power of the upper against the lower half of frequencies); correlation (N, pairs), Fisher z; power (N, bands),
    radial."""
    count, channels, height, width = latents.shape
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

    blocks["grain"] = smallest_steps(centred.unflatten(2, (height, width)), std)

    power = torch.fft.fft2(centred.unflatten(2, (height, width)), norm="ortho").abs().square()
    band = radial_bands(height, width).to(latents.device)
    by_band = torch.zeros(count, channels, int(band.max()) + 1, device=latents.device)
    by_band.index_add_(2, band.flatten(), power.flatten(2))
    by_band = by_band[..., 1:]  # the constant was subtracted
    half = max(1, by_band.shape[-1] // 2)
    blocks["band"] = (by_band[..., half:].sum(-1) + FLOOR).log() - (by_band[..., :half].sum(-1) + FLOOR).log()
    if channels > 1:
        chosen = correlated_channels(channels)
        matrix = scaled[:, chosen] @ scaled[:, chosen].mT / (height * width)
        upper = torch.triu_indices(len(chosen), len(chosen), 1)
        blocks["correlation"] = matrix[:, upper[0], upper[1]].clamp(-0.999, 0.999).atanh()
    blocks["power"] = by_band.mean(1)
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


def radial_bands(height: int, width: int) -> Tensor:
    """(h, w) band of every frequency: 0 is the constant, then rings of one cycle a picture up to the shorter side."""
    vertical, horizontal = torch.fft.fftfreq(height) * height, torch.fft.fftfreq(width) * width
    radius = (vertical[:, None].square() + horizontal[None].square()).sqrt()
    return radius.round().long().clamp_max(max(1, min(height, width) // 2))


def correlated_channels(channels: int) -> list[int]:
    return np.unique(np.linspace(0, channels - 1, min(channels, CORRELATED)).round().astype(int)).tolist()


def block_names(block: str, columns: int, channels: int) -> list[str]:
    """What the columns of a block are, as readings say it."""
    if block == "norms":
        return ["token norm", "largest token norm over the median", "tokens a prompt"]
    if block == "power":
        return [f"{k + 1} cycles a picture" for k in range(columns)]
    if block == "correlation":
        pairs = combinations(correlated_channels(channels), 2)
        return [f"channels {a} and {b} correlation" for a, b in pairs]
    label = {"low": "5% quantile", "high": "95% quantile", "grain": "smallest steps"}
    label |= {"band": "high frequencies", "log-sd": "spread"}
    return [f"channel {k} {label.get(block, block)}" for k in range(columns)]
