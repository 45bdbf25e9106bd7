"""Residual two-layer perceptrons beside the linear interface layers, zero at their last layer: the identity until
trained."""

from diffusers import SanaTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.adapters.base import ADAPTERS
from sanakit.adapters.linear import LinearCaption, LinearLatents


@ADAPTERS.register("mlp-latents", title="patch embedding followed by a residual MLP", embedded=True)
class MLPLatents(LinearLatents):
    @classmethod
    def install(cls, core: SanaTransformer2DModel) -> None:
        plain = core.patch_embed.proj
        core.patch_embed.proj = MLPPatch(plain.in_channels, plain.out_channels, plain.kernel_size, plain.stride)
        core.patch_embed.proj.load_state_dict(plain.state_dict(), strict=False)


@ADAPTERS.register("mlp-caption", title="residual MLP on the embeddings", embedded=True)
class MLPCaption(LinearCaption):
    @classmethod
    def install(cls, core: SanaTransformer2DModel) -> None:
        plain = core.caption_projection.linear_1
        core.caption_projection.linear_1 = MLPLinear(plain.in_features, plain.out_features)
        core.caption_projection.linear_1.load_state_dict(plain.state_dict(), strict=False)


class MLPPatch(nn.Conv2d):
    """(B, C, h, w) -> (B, hidden, h/p, w/p)."""

    def __init__(self, channels: int, hidden: int, kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
        super().__init__(channels, hidden, kernel, stride)  # type: ignore[arg-type]
        self.inner = nn.Conv2d(hidden, 2 * hidden, 1)
        self.outer = zeroed(nn.Conv2d(2 * hidden, hidden, 1))

    def forward(self, latents: Tensor) -> Tensor:
        tokens = super().forward(latents)
        return tokens + self.outer(F.gelu(self.inner(tokens)))


class MLPLinear(nn.Linear):
    """(B, L, D) -> (B, L, hidden)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.inner = nn.Linear(width, 2 * width)
        self.outer = zeroed(nn.Linear(2 * width, width))

    def forward(self, embeds: Tensor) -> Tensor:
        return super().forward(embeds + self.outer(F.gelu(self.inner(embeds))))


def zeroed(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
