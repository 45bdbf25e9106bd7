"""Log power of latents by ring of frequencies, from coarse to the corner of the spectrum.

The transform is a cosine transform (DCT-II, Ahmed et al. 1974): it mirrors an image at its edges. A Fourier transform
wraps it around, and the jump from one edge to the other leaks into all frequencies and hides what is weak there. The
logarithm is taken of every coefficient before the mean over a ring, so that the strongest coefficients do not decide.
"""

from functools import lru_cache

import torch
from torch import Tensor

FLOOR = 1e-5  # of a channel's variance: power of rounding, 0.3% of the spread, is not read
OCTAVES = {"middle": (0.25, 0.5), "fine": (0.5, 1.0), "corner": (1.0, 1.5)}  # radii, 1 = Nyquist of a side; corner 1.41
FINEST = 32  # rings of `power` up to the Nyquist frequency of a side, at most


def ring_blocks(centred: Tensor, std: Tensor) -> dict[str, Tensor]:
    """(N, C, h, w) without their means, and (N, C) spreads -> middle, fine, corner (N, C): mean log share of a
    channel's variance in one coefficient of the ring; rings (N, 6): the means of the three over channels, then those of
    their log power; power (N, K): mean log power over channels in K narrow rings. Rings without a frequency are 0."""
    height, width = centred.shape[2:]
    shares = cosine_transform(centred / std[..., None, None]).square_().add_(FLOOR).log_().flatten(2)  # (N, C, hw)
    octaves = torch.stack([mean_over(shares, ring) for ring in octave_rings(height, width)], 2)  # (N, C, 3)
    level = 2 * std.log()
    pooled = octaves.mean(1), (octaves + level[..., None]).mean(1)
    power = shares.mean(1) + level.mean(1, keepdim=True)  # (N, hw)
    blocks = dict(zip(OCTAVES, octaves.unbind(2), strict=True))
    blocks["rings"] = torch.cat(pooled, 1)
    blocks["power"] = torch.stack([mean_over(power, ring) for ring in narrow_rings(height, width)], 1)
    return blocks


def cosine_transform(values: Tensor) -> Tensor:
    """(..., h, w) -> orthonormal DCT-II over both, so that power sums to the sum of squares."""
    height, width = values.shape[-2:]
    return cosines(height).to(values.device) @ values @ cosines(width).to(values.device).T


@lru_cache(16)
def cosines(size: int) -> Tensor:
    """(size, size): row k is a cosine of k half cycles."""
    position, frequency = torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64)[:, None]
    rows = (torch.pi * (position + 0.5) * frequency / size).cos() * (2 / size) ** 0.5
    rows[0] /= 2**0.5
    return rows.float()


def radii(height: int, width: int) -> Tensor:
    """(h, w): frequency of every coefficient, 1 = Nyquist along one side; near 1.41 in the corner."""
    return torch.hypot(torch.arange(height)[:, None] / height, torch.arange(width)[None] / width)


def octave_rings(height: int, width: int) -> list[Tensor]:
    """Indices of the coefficients of each of OCTAVES."""
    radius = radii(height, width).flatten()
    return [((radius > low) & (radius <= high)).nonzero()[:, 0] for low, high in OCTAVES.values()]


def narrow_rings(height: int, width: int) -> list[Tensor]:
    """Indices of the coefficients of every ring of one half cycle of the shorter side (at most FINEST up to its Nyquist
    frequency); the constant is in none."""
    number = (radii(height, width) * steps(height, width)).round().flatten()
    number[0] = 0
    return [(number == k).nonzero()[:, 0] for k in range(1, int(number.max()) + 1)]


def steps(height: int, width: int) -> int:
    """Narrow rings up to the Nyquist frequency of a side."""
    return min(height, width, FINEST)


def mean_over(values: Tensor, ring: Tensor) -> Tensor:
    """(..., hw) -> (...): mean over the coefficients of a ring, 0 where it has none."""
    return values[..., ring.to(values.device)].mean(-1) if len(ring) else values.new_zeros(values.shape[:-1])
