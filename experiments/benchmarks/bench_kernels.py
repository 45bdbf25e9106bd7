"""Kernels against eager diffusers, torch.compile and (where installed) flash-linear-attention, on a GPU.

    python experiments/benchmarks/bench_kernels.py [--repeats 30]

Shapes of Sana-0.6B and 1.6B at 512 to 4096 px of an f32 VAE, bf16. Without a GPU it says so and measures nothing.
flash-linear-attention's chunked kernel is causal (another function, twice the state passes): named as such.
"""

import argparse
from collections.abc import Callable

import torch
from bench_harness import Row, compare, save
from torch.nn import functional as F

from sanakit.kernels.glumbconv import gated_depthwise
from sanakit.kernels.glumbconv.naive import gated_depthwise as eager_glumbconv
from sanakit.kernels.linear_attention import linear_attention

MODELS = {"0.6B": 36, "1.6B": 70}  # heads of 32
SIZES = {512: 64, 1024: 16, 2048: 4, 4096: 1}  # pixels -> batch


def diffusers_attention(query, key, value):
    """The middle of SanaLinearAttnProcessor2_0, line by line."""
    query, value = query.permute(0, 2, 3, 1), value.permute(0, 2, 3, 1)
    query, key = F.relu(query), F.relu(key.permute(0, 2, 1, 3))
    dtype = query.dtype
    query, key, value = query.float(), key.float(), value.float()
    scores = torch.matmul(F.pad(value, (0, 0, 0, 1), mode="constant", value=1.0), key)
    out = torch.matmul(scores, query)
    return (out[:, :, :-1] / (out[:, :, -1:] + 1e-15)).flatten(1, 2).transpose(1, 2).to(dtype)


def seconds(function: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def forward_backward(function, inputs, grad):
    return lambda: torch.autograd.grad(function(*inputs).view(grad.shape), inputs, grad)


def run(repeats: int) -> list[Row]:
    if not torch.cuda.is_available():
        print("no GPU here: the kernels' speed is not measured, nothing is claimed (run this file where there is one)")
        return []
    rows = []
    timed = {"repeats": repeats, "timer": seconds, "meaning": "times faster, forward and backward"}

    def make(*shape):
        return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")

    for model, heads in MODELS.items():
        for pixels, batch in SIZES.items():
            tokens = (pixels // 32) ** 2
            inputs = [make(batch, tokens, heads, 32).requires_grad_() for _ in range(3)]
            grad = make(batch, tokens, heads * 32)
            ours = forward_backward(linear_attention, inputs, grad)
            peers = {"eager diffusers": diffusers_attention, "torch.compile": torch.compile(diffusers_attention)}
            try:
                from fla.ops.linear_attn import chunk_linear_attn

                peers["flash-linear-attention (causal)"] = lambda q, k, v: chunk_linear_attn(
                    q=q.relu(), k=k.relu(), v=v, scale=1.0, normalize=True
                )[0].flatten(2)
            except ImportError:
                pass
            for label, peer in peers.items():
                theirs = forward_backward(peer, inputs, grad)
                rows.append(compare(f"linear attention {model} {pixels} px", ours, theirs, against=label, **timed))
                torch.compiler.reset()
            half, side = int(heads * 32 * 2.5), pixels // 32
            hidden = make(batch, 2 * half, side, side).to(memory_format=torch.channels_last)
            inputs = [t.requires_grad_() for t in (hidden, make(2 * half, 1, 3, 3), make(2 * half))]
            grad = make(batch, half, side, side).to(memory_format=torch.channels_last)
            ours = forward_backward(gated_depthwise, inputs, grad)
            for label, peer in (("eager", eager_glumbconv), ("torch.compile", torch.compile(eager_glumbconv))):
                theirs = forward_backward(peer, inputs, grad)
                rows.append(compare(f"gated depthwise {model} {pixels} px", ours, theirs, against=label, **timed))
                torch.compiler.reset()
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    save(run(parser.parse_args().repeats))
