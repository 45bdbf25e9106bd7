"""The core's linear attention served by sanakit's kernel, set and removed by one call each; weights untouched."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import SanaTransformer2DModel
from diffusers.models.attention_processor import Attention, SanaLinearAttnProcessor2_0
from torch import Tensor

from sanakit.kernels.linear_attention import linear_attention


class KernelLinearAttention:
    """diffusers' SanaLinearAttnProcessor2_0 with the middle of it in `linear_attention`; `replaced` is put back."""

    def __init__(self, replaced: SanaLinearAttnProcessor2_0) -> None:
        self.replaced = replaced

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,  # diffusers ignores it too: linear attention of the core has no mask
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)  # (B, N, H D)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        heads = (t.unflatten(-1, (attn.heads, -1)) for t in (query, key, value))
        out = linear_attention(*heads).flatten(2).to(hidden_states.dtype)
        out = attn.to_out[1](attn.to_out[0](out))
        return out.clip(-65504, 65504) if out.dtype == torch.float16 else out


def set_kernel_attention(core: SanaTransformer2DModel) -> int:
    """Serve every self-attention of `core` by the kernel; returns how many were changed. Other processors stay."""
    return _exchange(core, SanaLinearAttnProcessor2_0, KernelLinearAttention)


def remove_kernel_attention(core: SanaTransformer2DModel) -> int:
    """Put diffusers' processors back; returns how many were changed."""
    return _exchange(core, KernelLinearAttention, lambda processor: processor.replaced)


def _exchange(core: SanaTransformer2DModel, old: type, new: Callable[[Any], Any]) -> int:
    chosen = [b.attn1 for b in core.transformer_blocks if type(b.attn1.processor) is old]
    for attn in chosen:
        attn.set_processor(new(attn.processor))
    return len(chosen)
