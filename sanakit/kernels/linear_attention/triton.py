"""Linear attention that reads q, k, v and writes the output once, and in the backward pass reads q, k, v and the
output's gradient and writes three gradients once: no transposed, padded or single-precision copies.

A head's state is (D + 1, D): v^T relu(k), and the sum of relu(k) in the last row. Long sequences are cut into splits
whose states are added in a fixed order (no atomics: the result is the same at every run).
Shapes: B batch, N queries, M keys, H heads, D head dimension.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

from sanakit.kernels.linear_attention.naive import EPS as _EPS
from sanakit.placement import is_rocm

EPS = tl.constexpr(_EPS)
PROGRAMS = 512  # enough to fill a large GPU; a constant, so that every device adds in the same order


@triton.jit
def state_kernel(
    K: tl.tensor, V: tl.tensor, STATE: tl.tensor, M: tl.tensor, H: tl.tensor, length: tl.tensor,
    k_b: tl.tensor, k_m: tl.tensor, k_h: tl.tensor, v_b: tl.tensor, v_m: tl.tensor, v_h: tl.tensor,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (B H, splits): the state of `length` keys."""
    pair, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, head = pair // H, pair % H
    d = tl.arange(0, BLOCK_D)
    state = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(split * length, (split + 1) * length, BLOCK_N):
        m = start + tl.arange(0, BLOCK_N)
        mask = (m < M)[:, None] & (d < D)[None, :]
        k = tl.load(K + batch * k_b + head * k_h + m[:, None].to(tl.int64) * k_m + d[None, :], mask, 0.0)
        v = tl.load(V + batch * v_b + head * v_h + m[:, None].to(tl.int64) * v_m + d[None, :], mask, 0.0)
        k = tl.maximum(k.to(tl.float32), 0.0)
        state += tl.dot(tl.trans(v), k.to(v.dtype), input_precision=PRECISION)
        total += tl.sum(k, 0)
    base = STATE + (pair * tl.num_programs(1) + split) * (D + 1) * D
    tl.store(base + d[:, None] * D + d[None, :], state, (d < D)[:, None] & (d < D)[None, :])
    tl.store(base + D * D + d, total, d < D)


@triton.jit
def output_kernel(
    Q: tl.tensor, STATE: tl.tensor, OUT: tl.tensor, N: tl.tensor, H: tl.tensor,
    q_b: tl.tensor, q_n: tl.tensor, q_h: tl.tensor,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (B H, token tiles): relu(q) state, divided."""
    pair = tl.program_id(0).to(tl.int64)
    batch, head = pair // H, pair % H
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    mask, square = (n < N)[:, None] & (d < D)[None, :], (d < D)[:, None] & (d < D)[None, :]
    base = STATE + pair * (D + 1) * D
    state = tl.load(base + d[None, :] * D + d[:, None], square, 0.0)  # (Dk, Dv)
    total = tl.load(base + D * D + d, d < D, 0.0)
    q = tl.load(Q + batch * q_b + head * q_h + n[:, None].to(tl.int64) * q_n + d[None, :], mask, 0.0)
    q = tl.maximum(q.to(tl.float32), 0.0)
    out = tl.dot(q, state, input_precision=PRECISION) / (tl.sum(q * total[None, :], 1) + EPS)[:, None]
    tl.store(OUT + ((batch * N + n[:, None]) * H + head) * D + d[None, :], out.to(OUT.dtype.element_ty), mask)


@triton.jit
def query_grad_kernel(
    Q: tl.tensor, G: tl.tensor, STATE: tl.tensor, DQ: tl.tensor, DSTATE: tl.tensor, N: tl.tensor, H: tl.tensor,
    length: tl.tensor,
    q_b: tl.tensor, q_n: tl.tensor, q_h: tl.tensor, g_b: tl.tensor, g_n: tl.tensor, g_h: tl.tensor,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (B H, splits): gradient of q, and the state's gradient from `length` queries. The output is recomputed."""
    pair, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, head = pair // H, pair % H
    d = tl.arange(0, BLOCK_D)
    square = (d < D)[:, None] & (d < D)[None, :]
    base = STATE + pair * (D + 1) * D
    state = tl.load(base + d[:, None] * D + d[None, :], square, 0.0)  # (Dv, Dk)
    total = tl.load(base + D * D + d, d < D, 0.0)
    dstate = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
    dtotal = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(split * length, (split + 1) * length, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = (n < N)[:, None] & (d < D)[None, :]
        q = tl.load(Q + batch * q_b + head * q_h + n[:, None].to(tl.int64) * q_n + d[None, :], mask, 0.0)
        g = tl.load(G + batch * g_b + head * g_h + n[:, None].to(tl.int64) * g_n + d[None, :], mask, 0.0)
        q, g = tl.maximum(q.to(tl.float32), 0.0), g.to(tl.float32)
        scale = 1.0 / (tl.sum(q * total[None, :], 1) + EPS)
        dnum = g * scale[:, None]
        projected = tl.dot(dnum, state, input_precision=PRECISION)  # (N, Dk)
        dden = -tl.sum(q * projected, 1) * scale  # g . out = q . (state^T g) / den
        dq = tl.where(q > 0, projected + dden[:, None] * total[None, :], 0.0)
        tl.store(DQ + ((batch * N + n[:, None]) * H + head) * D + d[None, :], dq.to(DQ.dtype.element_ty), mask)
        dstate += tl.dot(tl.trans(dnum), q, input_precision=PRECISION)
        dtotal += tl.sum(q * dden[:, None], 0)
    base = DSTATE + (pair * tl.num_programs(1) + split) * (D + 1) * D
    tl.store(base + d[:, None] * D + d[None, :], dstate, square)
    tl.store(base + D * D + d, dtotal, d < D)


@triton.jit
def key_value_grad_kernel(
    K: tl.tensor, V: tl.tensor, DSTATE: tl.tensor, DK: tl.tensor, DV: tl.tensor, M: tl.tensor, H: tl.tensor,
    k_b: tl.tensor, k_m: tl.tensor, k_h: tl.tensor, v_b: tl.tensor, v_m: tl.tensor, v_h: tl.tensor,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (B H, token tiles): gradients of k and v from the state's."""
    pair = tl.program_id(0).to(tl.int64)
    batch, head = pair // H, pair % H
    m = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    mask, square = (m < M)[:, None] & (d < D)[None, :], (d < D)[:, None] & (d < D)[None, :]
    base = DSTATE + pair * (D + 1) * D
    dstate = tl.load(base + d[:, None] * D + d[None, :], square, 0.0)  # (Dv, Dk)
    dtotal = tl.load(base + D * D + d, d < D, 0.0)
    k = tl.load(K + batch * k_b + head * k_h + m[:, None].to(tl.int64) * k_m + d[None, :], mask, 0.0).to(tl.float32)
    v = tl.load(V + batch * v_b + head * v_h + m[:, None].to(tl.int64) * v_m + d[None, :], mask, 0.0).to(tl.float32)
    dk = tl.where(k > 0, tl.dot(v, dstate, input_precision=PRECISION) + dtotal[None, :], 0.0)
    dv = tl.dot(tl.maximum(k, 0.0), tl.trans(dstate), input_precision=PRECISION)
    out = ((batch * M + m[:, None]) * H + head) * D + d[None, :]
    tl.store(DK + out, dk.to(DK.dtype.element_ty), mask)
    tl.store(DV + out, dv.to(DV.dtype.element_ty), mask)


class LinearAttention(torch.autograd.Function):
    """`naive.linear_attention`; keeps q, k, v and one state a head for the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = _rows(query), _rows(key), _rows(value)
        (batch, tokens, heads, dim), keys = query.shape, key.shape[1]
        shared = _constants(query)
        splits, length = _split(keys, batch * heads, shared)
        state = query.new_empty(batch * heads, splits, dim + 1, dim, dtype=torch.float32)
        state_kernel[batch * heads, splits](
            key, value, state, keys, heads, length, *key.stride()[:3], *value.stride()[:3], **shared
        )
        state = state.sum(1) if splits > 1 else state[:, 0]
        out = query.new_empty(query.shape)
        output_kernel[batch * heads, triton.cdiv(tokens, shared["BLOCK_N"])](
            query, state, out, tokens, heads, *query.stride()[:3], **shared
        )
        ctx.save_for_backward(query, key, value, state)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, state = ctx.saved_tensors
        grad = _rows(grad)
        (batch, tokens, heads, dim), keys = query.shape, key.shape[1]
        shared = _constants(query)
        splits, length = _split(tokens, batch * heads, shared)
        dstate = query.new_empty(batch * heads, splits, dim + 1, dim, dtype=torch.float32)
        dquery, dkey, dvalue = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
        query_grad_kernel[batch * heads, splits](
            query, grad, state, dquery, dstate, tokens, heads, length,
            *query.stride()[:3], *grad.stride()[:3], **shared,
        )  # fmt: skip
        dstate = dstate.sum(1) if splits > 1 else dstate[:, 0]
        key_value_grad_kernel[batch * heads, triton.cdiv(keys, shared["BLOCK_N"])](
            key, value, dstate, dkey, dvalue, keys, heads, *key.stride()[:3], *value.stride()[:3], **shared
        )
        return dquery, dkey, dvalue


def constants(dim: int, half: bool) -> dict[str, Any]:
    """Compile-time arguments. Half precision multiplies in tf32 (10 bits) and adds in fp32; single precision takes
    three tf32 products (AMD has its own). Wide heads take small tiles, or their state would spill."""
    wide = dim > 64
    exact = "ieee" if is_rocm() else "tf32x3"
    return {
        "D": dim,
        "BLOCK_D": max(16, triton.next_power_of_2(dim)),
        "BLOCK_N": 64 if not wide else 32 if half else 16,
        "PRECISION": "tf32" if half else exact,
        "num_warps": 8 if wide or not half else 4,
        "num_stages": 1 if wide else 2,
    }


def _constants(tensor: Tensor) -> dict[str, Any]:
    return constants(tensor.shape[-1], tensor.dtype != torch.float32)


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _split(tokens: int, pairs: int, shared: dict[str, Any]) -> tuple[int, int]:
    """Splits of a sequence and their length, whole tiles, at least four of them each."""
    block = shared["BLOCK_N"]
    tiles = triton.cdiv(tokens, block)
    splits = max(1, min(triton.cdiv(PROGRAMS, pairs), tiles // 4))
    length = triton.cdiv(tiles, splits) * block
    return triton.cdiv(tokens, length), length
