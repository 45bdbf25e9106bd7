"""A timestep-aware connector on the embeddings (the idea of ELLA, arXiv 2403.05135): what the prompt says, by noise
level.

The core embeds time before it projects the captions; a hook hands that embedding over, for one forward pass.
"""

from typing import Any

from diffusers import SanaTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.adapters.base import ADAPTERS
from sanakit.adapters.linear import LinearCaption
from sanakit.adapters.mlp import zeroed


@ADAPTERS.register("timestep-caption", title="residual MLP on the embeddings that knows the noise level", embedded=True)
class TimestepCaption(LinearCaption):
    @classmethod
    def install(cls, core: SanaTransformer2DModel) -> None:
        plain = core.caption_projection.linear_1
        hidden = core.config.num_attention_heads * core.config.attention_head_dim
        connector = TimestepLinear(plain.in_features, plain.out_features, hidden)
        connector.load_state_dict(plain.state_dict(), strict=False)
        core.caption_projection.linear_1 = connector
        core.time_embed.register_forward_hook(connector.see)


class TimestepLinear(nn.Linear):
    """(B, L, D) -> (B, L, hidden); without a forward pass of the core, at no time in particular."""

    def __init__(self, width: int, hidden: int, time_width: int) -> None:
        super().__init__(width, hidden)
        self.inner = nn.Linear(width, 2 * width)
        self.modulation = nn.Linear(time_width, 4 * width)  # scale and shift of the inner layer
        self.outer = zeroed(nn.Linear(2 * width, width))
        self.time: Tensor | None = None

    def see(self, module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        """The time embedding (B, time_width). A bound method: a copy of the core has a hook of its own."""
        self.time = output[1]

    def forward(self, embeds: Tensor) -> Tensor:
        time, self.time = self.time, None  # kept for one pass: a graph that stays could not be copied
        if time is None:
            time = embeds.new_zeros(1, self.modulation.in_features)
        scale, shift = self.modulation(F.silu(time))[:, None].chunk(2, -1)
        features = F.gelu(self.inner(embeds)) * (1 + scale) + shift
        return super().forward(embeds + self.outer(features))
