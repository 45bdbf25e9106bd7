"""ChannelSums in one read of the latents for up to 128 channels (beyond, every tile of 128 meets the tiles before it).

A program sums a stretch of positions in single precision; the stretches are added in float64. Single-precision input
is taken relative to a pivot, its first position, so that a mean far from zero costs no digits and a dead channel has
no variance; half-precision products are exact in single precision and need none.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sanakit.placement import is_rocm

PROGRAMS = 1024


@triton.jit
def channel_sums_kernel(
    X: tl.tensor, PIVOT: tl.tensor, TOTAL: tl.tensor, PRODUCTS: tl.tensor, positions: tl.tensor, area: tl.tensor,
    width: tl.tensor, length: tl.tensor,
    s_n: tl.tensor, s_c: tl.tensor, s_h: tl.tensor, s_w: tl.tensor,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, PIVOTED: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (stretches, channel tiles, channel tiles): a stretch's sums; tiles above the diagonal mirror those below."""
    stretch, row, column = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    if column > row:
        return
    i = row * BLOCK_C + tl.arange(0, BLOCK_C)
    j = column * BLOCK_C + tl.arange(0, BLOCK_C)
    products = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
    total = tl.zeros((BLOCK_C,), tl.float32)
    if PIVOTED:
        pivot_i = tl.load(PIVOT + i, i < C, 0.0)[:, None]
        pivot_j = tl.load(PIVOT + j, j < C, 0.0)[:, None]
    begin = stretch * length
    end = tl.minimum(begin + length, positions)
    for start in range(begin, end, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = p % area
        offset = (p // area) * s_n + (inside // width).to(tl.int64) * s_h + (inside % width).to(tl.int64) * s_w
        mask = (i < C)[:, None] & (p < end)[None, :]
        x = tl.load(X + offset[None, :] + i[:, None].to(tl.int64) * s_c, mask, 0.0)
        if PIVOTED:
            x = tl.where(mask, x - pivot_i, 0.0)
        if BLOCK_C >= C:
            y = x
        else:
            mask = (j < C)[:, None] & (p < end)[None, :]
            y = tl.load(X + offset[None, :] + j[:, None].to(tl.int64) * s_c, mask, 0.0)
            if PIVOTED:
                y = tl.where(mask, y - pivot_j, 0.0)
        products += tl.dot(x, tl.trans(y), input_precision=PRECISION)
        total += tl.sum(x.to(tl.float32), 1)
    out = PRODUCTS + (stretch * C + i[:, None]) * C + j[None, :]
    tl.store(out, products, (i < C)[:, None] & (j < C)[None, :])
    if row == column:
        tl.store(TOTAL + stretch * C + i, total, i < C)


def channel_sums(latents: Tensor, per_image: bool) -> tuple[Tensor, Tensor]:
    """`naive.channel_sums`."""
    images, channels, height, width = latents.shape
    area = height * width
    positions = images * area
    # a stretch of 8 C positions or more keeps the partial sums small beside the latents
    length = area if per_image else max(8 * channels, triton.cdiv(positions, PROGRAMS))
    stretches = triton.cdiv(positions, length)
    pivot = latents[0, :, 0, 0].contiguous()
    total = latents.new_empty(stretches, channels, dtype=torch.float32)
    products = latents.new_empty(stretches, channels, channels, dtype=torch.float32)
    shared = constants(channels, latents.dtype != torch.float32)
    tiles = triton.cdiv(channels, shared["BLOCK_C"])
    channel_sums_kernel[stretches, tiles, tiles](
        latents, pivot, total, products, positions, area, width, length, *latents.stride(), **shared
    )
    if per_image:
        total, products, count = total.double(), products.double(), area
    else:
        total, products, count = total.sum(0, dtype=torch.float64), products.sum(0, dtype=torch.float64), positions
    products = products.tril() + products.tril(-1).mT
    if shared["PIVOTED"]:  # about the pivot -> about zero
        shift = pivot.double()
        cross = total[..., :, None] * shift
        products = products + cross + cross.mT + count * shift[:, None] * shift
        total = total + count * shift
    return total, products


def constants(channels: int, half: bool) -> dict[str, Any]:
    """Compile-time arguments; three tf32 products (or AMD's own) give single precision."""
    return {
        "C": channels,
        "BLOCK_C": min(128, max(16, triton.next_power_of_2(channels))),
        "BLOCK_P": 32 if channels > 64 else 64,  # positions a tile
        "PIVOTED": not half,
        "PRECISION": "ieee" if is_rocm() else "tf32x3",
        "num_warps": 8 if channels > 64 else 4,
        "num_stages": 2,
    }
