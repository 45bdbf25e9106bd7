"""`train.kernels: triton`: self-attention and mix-FFN of a core served by sanakit's Triton kernels
(sanakit/kernels)."""

import importlib.util
import os

import torch
from diffusers import SanaTransformer2DModel

from sanakit.core.attention import KernelLinearAttention, set_kernel_attention
from sanakit.core.feed_forward import KernelGLUMBConv, set_kernel_feed_forward
from sanakit.errors import SanakitError
from sanakit.placement import runs_triton


def serve_by_kernels(core: SanaTransformer2DModel, device: torch.device) -> int:
    """Exchange the two operations of every block; weights and their names stay. Returns how many modules are served.

    Raises SK0901 without the package triton, SK0104 for a device that no kernel runs on, and for a core of which no
    module can be served.
    """
    if not has_triton():
        raise SanakitError("SK0901", "train.kernels triton needs the package triton", fix="pip install triton")
    if not runs_triton(device) and os.environ.get("TRITON_INTERPRET") != "1":
        raise SanakitError(
            "SK0104",
            f"train.kernels is triton, and the core is on {device.type}; the kernels run on CUDA and ROCm devices",
            fix="--set train.kernels=off",
        )
    served = set_kernel_attention(core) + set_kernel_feed_forward(core)
    if not served and not any(_is_served(block) for block in core.transformer_blocks):
        raise SanakitError(
            "SK0104",
            "train.kernels is triton, and no block of this core has diffusers' linear attention or mix-FFN "
            "as Sana builds them",
            fix="--set train.kernels=off",
        )
    return served


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _is_served(block: torch.nn.Module) -> bool:
    """Whether an earlier call exchanged the block's operations already."""
    attention = block.attn1.processor  # type: ignore[union-attr]
    return isinstance(attention, KernelLinearAttention) or isinstance(block.ff, KernelGLUMBConv)
