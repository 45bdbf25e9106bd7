"""The embedded world's training step on a CPU: what was tried, each against the same step without it.

    python experiments/benchmarks/bench_cpu.py [--repeats 15] [--threads 1]

A core of 2.4 M parameters (5 layers, 160 wide, 36 tokens: tiny-sana's depth, not its width of 256), forward, backward,
clip, AdamW.
"""

import argparse
import time

import torch
from bench_all import CONFIG
from bench_harness import compare, save
from torch import nn
from torch.nn import functional as F

from sanakit.core.dit import new_core


class ProductGLUMBConv(nn.Module):
    """1x1 convolutions as products over tokens."""

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        self.old = old

    def forward(self, x):
        up, depth, down = self.old.conv_inverted, self.old.conv_depth, self.old.conv_point
        hidden = F.linear(x.permute(0, 2, 3, 1), up.weight.flatten(1), up.bias).permute(0, 3, 1, 2)
        value, gate = depth(F.silu(hidden)).chunk(2, 1)
        out = (value * F.silu(gate)).permute(0, 2, 3, 1)
        return F.linear(out, down.weight.flatten(1)).permute(0, 3, 1, 2)


def step(*, batch=32, tokens=16, last=False, optimizer="fused", products=False, autocast=False, compiled=False):
    torch.manual_seed(0)
    core = new_core(CONFIG, seed=0)
    if products:
        for block in core.transformer_blocks:
            block.ff = ProductGLUMBConv(block.ff)
    if last:
        core.to(memory_format=torch.channels_last)
    options = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}[optimizer]
    adam = torch.optim.AdamW(core.parameters(), lr=1e-4, **options)
    run = torch.compile(core) if compiled else core
    x, e = torch.randn(batch, 32, 6, 6), torch.randn(batch, tokens, CONFIG["caption_channels"])
    m, t = torch.ones(batch, tokens), torch.rand(batch) * 1000

    def one():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = run(x, encoder_hidden_states=e, timestep=t, encoder_attention_mask=m, return_dict=False)[0]
        out.float().square().mean().backward()
        nn.utils.clip_grad_norm_(core.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)

    return one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slow", action="store_true", help="bf16 autocast too, which takes minutes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    shared = {"meaning": "times faster", "repeats": args.repeats, "clock": clock}
    label = f"CPU step, {args.threads} thread{'s' * (args.threads > 1)}: "
    plain, last = step(), step(last=True)
    rows = [
        compare(f"{label}channels_last", last, plain, against="contiguous", **shared),
        compare(f"{label}1x1 as products", step(products=True), plain, against="contiguous", **shared),
        compare(
            f"{label}1x1 as products + last", step(products=True, last=True), last, against="channels_last", **shared
        ),
        compare(f"{label}fused AdamW", plain, step(optimizer="foreach"), against="foreach AdamW", **shared),
        compare(f"{label}fused AdamW (loop)", plain, step(optimizer="loop"), against="AdamW one by one", **shared),
        compare(f"{label}8 caption tokens", step(tokens=8), plain, against="16 caption tokens", **shared),
    ]
    for batch in (8, 16, 64, 128):
        other = step(batch=batch)
        count = max(1, 32 // batch)

        def many(other=other, count=count):
            return [other() for _ in range(count)]

        per = max(1, batch // 32)

        def thirty_two(per=per):
            return [plain() for _ in range(per)]

        few = shared | {"repeats": max(5, args.repeats // 3)}
        rows.append(compare(f"{label}batch {batch}", many, thirty_two, against="the same images at batch 32", **few))
    if args.slow:
        rows.append(
            compare(
                f"{label}bf16 autocast",
                step(autocast=True),
                plain,
                against="single precision",
                **shared | {"repeats": 3},
            )
        )
    save(rows)


if __name__ == "__main__":
    main()
