"""The core's mix-FFN served by sanakit's kernel between its 1x1 convolutions, set and removed by one call each.

GLUMBConv has no processor to exchange, so the module changes its class: weights, names, hooks and state_dict stay.
"""

from typing import Any

from diffusers import SanaTransformer2DModel
from diffusers.models.transformers.sana_transformer import GLUMBConv
from torch import Tensor, nn

from sanakit.kernels.glumbconv import gated_depthwise


class KernelGLUMBConv(GLUMBConv):
    """diffusers' GLUMBConv without norm and residual, as the core builds it."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if type(self.conv_depth) is not nn.Conv2d:  # an adapter wraps it: its weight alone is not its function
            return super().forward(hidden_states)
        hidden = self.conv_inverted(hidden_states)
        return self.conv_point(gated_depthwise(hidden, self.conv_depth.weight, self.conv_depth.bias))


def set_kernel_feed_forward(core: SanaTransformer2DModel) -> int:
    """Serve every mix-FFN of `core` by the kernel; returns how many were changed. Other modules stay."""
    return _exchange(core, GLUMBConv, KernelGLUMBConv)


def remove_kernel_feed_forward(core: SanaTransformer2DModel) -> int:
    """Give the modules diffusers' class back; returns how many were changed."""
    return _exchange(core, KernelGLUMBConv, GLUMBConv)


def _exchange(core: SanaTransformer2DModel, old: type, new: type) -> int:
    chosen: list[Any] = [block.ff for block in core.transformer_blocks if type(block.ff) is old]
    chosen = [ff for ff in chosen if ff.norm is None and not ff.residual_connection]
    for ff in chosen:
        ff.__class__ = new
    return len(chosen)
