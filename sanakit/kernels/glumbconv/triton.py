"""SiLU, depthwise 3x3, SiLU gate in one read of the hidden tensor, forward; only the input is kept for the backward
pass, where eager keeps the input, its SiLU, the convolution and the gate's SiLU (seven half-precision tensors instead
of two).

A program walks down a strip of rows. A row is read at its three horizontal shifts and adds to the three output rows
that it touches, so SiLU is computed three times an element, not nine.
Backward: `gate_grad_kernel` recomputes the convolution and writes its gradient d (B, 2F, H, W); `input_grad_kernel`
is the transposed convolution of d with SiLU's derivative, and the gradients of weight and bias.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

ROWS = 16  # of a strip; two more are read
BLOCK_W, BLOCK_C = 16, 32


@triton.jit
def _silu(x: tl.tensor) -> tl.tensor:
    return x / (1.0 + tl.exp(-x))


@triton.jit
def _row(
    X: tl.tensor, y: tl.tensor, x: tl.tensor, c: tl.tensor, H: tl.tensor, W: tl.tensor, C: tl.tensor, s_h: tl.tensor,
    s_w: tl.tensor, s_c: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """One row's tile (BLOCK_W, BLOCK_C) in single precision, zero outside of the image."""
    mask = ((y >= 0) & (y < H) & (x >= 0) & (x < W))[:, None] & (c < C)[None, :]
    offset = y * s_h + x[:, None] * s_w + c[None, :] * s_c
    return tl.load(X + offset, mask, 0.0).to(tl.float32)


@triton.jit
def _taps(WEIGHT: tl.tensor, c: tl.tensor, C: tl.tensor, dy: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The three weights of a kernel row, each (1, BLOCK_C)."""
    row = WEIGHT + c * 9 + dy * 3
    w0 = tl.load(row, c < C, 0.0).to(tl.float32)[None, :]
    w1 = tl.load(row + 1, c < C, 0.0).to(tl.float32)[None, :]
    w2 = tl.load(row + 2, c < C, 0.0).to(tl.float32)[None, :]
    return w0, w1, w2


@triton.jit
def _convolve(
    X: tl.tensor, WEIGHT: tl.tensor, y: tl.tensor, x: tl.tensor, c: tl.tensor, H: tl.tensor, W: tl.tensor, C: tl.tensor,
    s_h: tl.tensor, s_w: tl.tensor, s_c: tl.tensor, below: tl.tensor, here: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Adds input row y to the outputs of rows y - 1 (`below`, finished), y (`here`) and y + 1 (returned last)."""
    left = _silu(_row(X, y, x - 1, c, H, W, C, s_h, s_w, s_c))
    middle = _silu(_row(X, y, x, c, H, W, C, s_h, s_w, s_c))
    right = _silu(_row(X, y, x + 1, c, H, W, C, s_h, s_w, s_c))
    a, b, d = _taps(WEIGHT, c, C, 2)
    below += left * a + middle * b + right * d
    a, b, d = _taps(WEIGHT, c, C, 1)
    here += left * a + middle * b + right * d
    a, b, d = _taps(WEIGHT, c, C, 0)
    return below, here, left * a + middle * b + right * d


@triton.jit
def gate_kernel(
    U: tl.tensor, WEIGHT: tl.tensor, BIAS: tl.tensor, G: tl.tensor, OUT: tl.tensor, H: tl.tensor, W: tl.tensor,
    F: tl.tensor, strips: tl.tensor,
    u_b: tl.tensor, u_c: tl.tensor, u_h: tl.tensor, u_w: tl.tensor, g_b: tl.tensor, g_c: tl.tensor, g_h: tl.tensor,
    g_w: tl.tensor, o_b: tl.tensor, o_c: tl.tensor, o_h: tl.tensor, o_w: tl.tensor,
    BACKWARD: tl.constexpr, ROWS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (channel tiles, column tiles, B strips). Forward: OUT (B, F, H, W). Backward: OUT (B, 2F, H, W) is the
    gradient of the convolution under the output's gradient G (B, F, H, W)."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    x = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    batch, first = (tl.program_id(2) // strips).to(tl.int64), tl.program_id(2) % strips * ROWS
    value_in, gate_in = U + batch * u_b, U + batch * u_b + F * u_c
    value_weight, gate_weight = WEIGHT, WEIGHT + F * 9
    value_bias = tl.load(BIAS + c, c < F, 0.0).to(tl.float32)[None, :]
    gate_bias = tl.load(BIAS + F + c, c < F, 0.0).to(tl.float32)[None, :]
    zero = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    value0, value1, gate0, gate1 = zero, zero, zero, zero
    for y in range(first - 1, first + ROWS + 1):
        value, value0, value1 = _convolve(value_in, value_weight, y, x, c, H, W, F, u_h, u_w, u_c, value0, value1)
        gate, gate0, gate1 = _convolve(gate_in, gate_weight, y, x, c, H, W, F, u_h, u_w, u_c, gate0, gate1)
        done = y - 1
        mask = ((done >= first) & (done < H) & (x < W))[:, None] & (c < F)[None, :]
        value, gate = value + value_bias, gate + gate_bias
        out = OUT + batch * o_b + done * o_h + x[:, None] * o_w
        out += c[None, :] * o_c
        if BACKWARD:
            g = _row(G + batch * g_b, done, x, c, H, W, F, g_h, g_w, g_c)
            s = 1.0 / (1.0 + tl.exp(-gate))
            tl.store(out, (g * gate * s).to(OUT.dtype.element_ty), mask)
            slope = s * (1.0 + gate * (1.0 - s))
            tl.store(out + F * o_c, (g * value * slope).to(OUT.dtype.element_ty), mask)
        else:
            tl.store(out, (value * _silu(gate)).to(OUT.dtype.element_ty), mask)


@triton.jit
def input_grad_kernel(
    U: tl.tensor, D: tl.tensor, WEIGHT: tl.tensor, DU: tl.tensor, DWEIGHT: tl.tensor, H: tl.tensor, W: tl.tensor,
    C: tl.tensor, strips: tl.tensor,
    u_b: tl.tensor, u_c: tl.tensor, u_h: tl.tensor, u_w: tl.tensor, d_b: tl.tensor, d_c: tl.tensor, d_h: tl.tensor,
    d_w: tl.tensor, o_b: tl.tensor, o_c: tl.tensor, o_h: tl.tensor, o_w: tl.tensor,
    ROWS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (channel tiles, column tiles, B strips): DU (B, C, H, W), and this program's part of the gradients of weight
    and bias, DWEIGHT (programs, 10, C) with the bias last."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    x = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    batch, first = (tl.program_id(2) // strips).to(tl.int64), tl.program_id(2) % strips * ROWS
    d_base, u_base = D + batch * d_b, U + batch * u_b
    zero = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    ds0, ds1 = zero, zero  # gradient of silu(u) in rows y - 1 and y, still to be finished
    before, here = zero, zero  # silu(u) in rows y - 1 and y, zero in rows of other programs
    w00, w01, w02, w10, w11, w12, w20, w21, w22, bias = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    for y in range(first - 1, first + ROWS + 1):
        inside = (y + 1 >= first) & (y + 1 < first + ROWS)
        after = tl.where(inside, _silu(_row(u_base, y + 1, x, c, H, W, C, u_h, u_w, u_c)), 0.0)
        left = _row(d_base, y, x - 1, c, H, W, C, d_h, d_w, d_c)
        middle = _row(d_base, y, x, c, H, W, C, d_h, d_w, d_c)
        right = _row(d_base, y, x + 1, c, H, W, C, d_h, d_w, d_c)
        # the convolution's row y read rows y - 1, y, y + 1 with kernel rows 0, 1, 2; column x likewise
        a, b, e = _taps(WEIGHT, c, C, 0)
        ds = ds0 + right * a + middle * b + left * e
        a, b, e = _taps(WEIGHT, c, C, 1)
        ds0 = ds1 + right * a + middle * b + left * e
        a, b, e = _taps(WEIGHT, c, C, 2)
        ds1 = right * a + middle * b + left * e
        w00 += right * before
        w01 += middle * before
        w02 += left * before
        w10 += right * here
        w11 += middle * here
        w12 += left * here
        w20 += right * after
        w21 += middle * after
        w22 += left * after
        bias += tl.where((y >= first) & (y < first + ROWS), middle, 0.0)
        before, here = here, after
        inside = (y - 1 >= first) & (y - 1 < first + ROWS)
        u = _row(u_base, y - 1, x, c, H, W, C, u_h, u_w, u_c)
        s = 1.0 / (1.0 + tl.exp(-u))
        mask = (inside & (y - 1 < H) & (x < W))[:, None] & (c < C)[None, :]
        out = DU + batch * o_b + (y - 1) * o_h + x[:, None] * o_w
        out += c[None, :] * o_c
        tl.store(out, (ds * s * (1.0 + u * (1.0 - s))).to(DU.dtype.element_ty), mask)
    program = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    base = DWEIGHT + program * 10 * C + c
    tl.store(base, tl.sum(w00, 0), c < C)
    tl.store(base + C, tl.sum(w01, 0), c < C)
    tl.store(base + 2 * C, tl.sum(w02, 0), c < C)
    tl.store(base + 3 * C, tl.sum(w10, 0), c < C)
    tl.store(base + 4 * C, tl.sum(w11, 0), c < C)
    tl.store(base + 5 * C, tl.sum(w12, 0), c < C)
    tl.store(base + 6 * C, tl.sum(w20, 0), c < C)
    tl.store(base + 7 * C, tl.sum(w21, 0), c < C)
    tl.store(base + 8 * C, tl.sum(w22, 0), c < C)
    tl.store(base + 9 * C, tl.sum(bias, 0), c < C)


class GatedDepthwise(torch.autograd.Function):
    """`naive.gated_depthwise`."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias)
        out = _like(hidden, hidden.shape[1] // 2)
        _gate(hidden, weight, bias, out, out, backward=False)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, weight, bias = ctx.saved_tensors
        _, channels, height, width = hidden.shape
        gradient = _like(hidden, channels)  # of the convolution
        _gate(hidden, weight, bias, grad, gradient, backward=True)
        dhidden = _like(hidden, channels)
        grid, strips = _grid(channels, hidden)
        parts = hidden.new_empty(grid[1] * grid[2], 10, channels, dtype=torch.float32)
        input_grad_kernel[grid](
            hidden, gradient, weight.contiguous(), dhidden, parts, height, width, channels, strips,
            *hidden.stride(), *gradient.stride(), *dhidden.stride(), **TILE,
        )  # fmt: skip
        parts = parts.sum(0)
        dweight = parts[:9].T.reshape(weight.shape).to(weight.dtype)
        return dhidden, dweight, parts[9].to(bias.dtype)


TILE = {"ROWS": ROWS, "BLOCK_W": BLOCK_W, "BLOCK_C": BLOCK_C}


def _gate(hidden: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, out: Tensor, *, backward: bool) -> None:
    half = hidden.shape[1] // 2
    grid, strips = _grid(half, hidden)
    gate_kernel[grid](
        hidden, weight.contiguous(), bias, grad, out, *hidden.shape[2:], half, strips,
        *hidden.stride(), *grad.stride(), *out.stride(), BACKWARD=backward, **TILE,
    )  # fmt: skip


def _grid(channels: int, hidden: Tensor) -> tuple[tuple[int, int, int], int]:
    batch, _, height, width = hidden.shape
    strips = triton.cdiv(height, ROWS)
    return (triton.cdiv(channels, BLOCK_C), triton.cdiv(width, BLOCK_W), batch * strips), strips


def _like(hidden: Tensor, channels: int) -> Tensor:
    """An empty (B, channels, H, W) in the memory format of `hidden`: channels last where its channels are adjacent."""
    batch, _, height, width = hidden.shape
    order = torch.channels_last if hidden.stride(1) == 1 else torch.contiguous_format
    return torch.empty(batch, channels, height, width, dtype=hidden.dtype, device=hidden.device, memory_format=order)
