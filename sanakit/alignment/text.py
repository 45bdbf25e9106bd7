"""Closed-form alignment of the caption projection to another text encoder.

The new first layer is the ridge solution that gives each caption's mean token the base's mean first-layer output
(before the activation). Tokens of two tokenizers are not paired here: pooling needs no offsets and measured equal
on short captions.
"""

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor

from sanakit.alignment.moments import CrossMoments
from sanakit.text_encoders import PromptEmbeds


def pool(prompt: PromptEmbeds) -> Tensor:
    """Masked mean over tokens. (B, D)"""
    mask = prompt.mask[..., None].float()
    return (prompt.embeds.float() * mask).sum(1) / mask.sum(1).clamp_min(1)


def align_caption(
    core: SanaTransformer2DModel, base_core: SanaTransformer2DModel, own: PromptEmbeds, base: PromptEmbeds
) -> float:
    """Set `core.caption_projection.linear_1` from paired captions; returns the R^2 of the pooled map."""
    layer, base_layer = core.caption_projection.linear_1, base_core.caption_projection.linear_1
    moments = CrossMoments.empty(layer.in_features, layer.out_features)
    x, y = pool(own), base_layer(pool(base)).detach()
    moments.add(x, y)
    weight, bias = moments.ridge(penalty=1e-2)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return 1 - ((y - x @ weight.T - bias).square().sum() / (y - y.mean(0)).square().sum()).item()
