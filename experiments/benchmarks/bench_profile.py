"""Where a training step of the core goes: why the kernels are the kernels they are.

    python experiments/benchmarks/bench_profile.py [--threads 1]

First, counted and the same on every machine: bytes that the parts of one Sana-1.6B block read and write in bf16 at
1024 px, forward and backward, split into products (1x1 convolutions included) and everything else, which is what a
fused kernel can save. Then, measured on this CPU: time by operator of tiny-sana's step.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sanakit.core.dit import new_core

TINY = json.loads(Path("sanakit/assets/cores/tiny-sana/config.json").read_text())
SANA_16B = {
    "num_attention_heads": 70, "attention_head_dim": 32, "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112, "cross_attention_dim": 2240, "caption_channels": 2304, "mlp_ratio": 2.5,
    "sample_size": 32, "patch_size": 1, "in_channels": 32, "out_channels": 32, "num_layers": 1,
}  # fmt: skip
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention"}


class Traffic(TorchDispatchMode):
    """Bytes of the inputs and outputs of every operator that is not a view."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.others = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not function.is_view and not function._schema.name.startswith(("aten::_unsafe_view", "aten::empty")):
            size = sum(t.nbytes for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor))
            name = function._schema.name.removeprefix("aten::")
            product = name in PRODUCTS or (
                name.startswith("convolution") and next(t for t in args[1:] if t.ndim == 4).shape[-1] == 1
            )
            if name == "convolution_backward":
                product = args[2].shape[-1] == 1
            self.products += size * product
            self.others += size * (not product)
        return out


def traffic(module: nn.Module, *inputs: torch.Tensor) -> Traffic:
    with Traffic() as counted:
        module(*inputs).sum().backward()
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)

    with torch.device("meta"):
        from diffusers import SanaTransformer2DModel

        block = SanaTransformer2DModel(**SANA_16B).transformer_blocks[0].to(torch.bfloat16)
        tokens = torch.empty(8, 1024, 2240, dtype=torch.bfloat16, requires_grad=True)
        caption = torch.empty(8, 300, 2240, dtype=torch.bfloat16, requires_grad=True)
        image = tokens.detach().unflatten(1, (32, 32)).permute(0, 3, 1, 2).requires_grad_()
        print("one block of Sana-1.6B, batch 8, 1024 px, bf16, forward and backward: MB moved")
        print(f"{'':<28}{'products':>10}{'the rest':>10}")
        for label, module, inputs in (
            ("linear attention (attn1)", block.attn1, (tokens,)),
            ("cross-attention (attn2)", block.attn2, (tokens, caption)),
            ("mix-FFN (GLUMBConv)", block.ff, (image,)),
        ):
            moved = traffic(module, *inputs)
            print(f"{label:<28}{moved.products / 1e6:>10.0f}{moved.others / 1e6:>10.0f}")
    unit = tokens.nbytes / 1e6
    print(
        f"kernels instead of the rest: linear attention {11 * unit:.0f} (4 passes over the tokens forward, 7 backward),"
    )
    print(f"gated depthwise {14 * 2.5 * unit:.0f} (3 passes over the gated half forward, 11 backward)\n")

    core = new_core({k: v for k, v in TINY.items() if k[0] != "_"}, seed=0)
    arguments = {
        "hidden_states": torch.randn(32, 32, 6, 6),
        "encoder_hidden_states": torch.randn(32, 16, 384),
        "encoder_attention_mask": torch.ones(32, 16),
        "timestep": torch.rand(32) * 1000,
        "return_dict": False,
    }

    def step():
        return core(**arguments)[0].square().mean().backward()

    step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    times = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    total = sum(times.values())
    print(f"tiny-sana on this CPU, batch 32, 36 tokens, fp32, forward and backward: {total / 1e3:.0f} ms")
    for name, spent in sorted(times.items(), key=lambda item: -item[1])[:10]:
        print(f"  {name:<60}{spent / total:7.1%}")


if __name__ == "__main__":
    main()
