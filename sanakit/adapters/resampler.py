"""A resampler on the embeddings: learned queries read all tokens, every token reads what they found.

As in Perceiver (arXiv 2103.03206) and its use between language and vision models (arXiv 2204.14198), but the tokens
stay as many and the answer is added to them, so that the core sees what it knows until the adapter is trained. The
encoder zeroes its padding, which is how padded tokens are told here.
"""

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.adapters.base import ADAPTERS
from sanakit.adapters.linear import LinearCaption
from sanakit.adapters.mlp import zeroed

QUERIES, HEAD = 16, 32


@ADAPTERS.register("resampler-caption", title="learned queries between the tokens", embedded=True)
class ResamplerCaption(LinearCaption):
    @classmethod
    def install(cls, core: SanaTransformer2DModel) -> None:
        plain = core.caption_projection.linear_1
        core.caption_projection.linear_1 = Resampler(plain.in_features, plain.out_features)
        core.caption_projection.linear_1.load_state_dict(plain.state_dict(), strict=False)


class Resampler(nn.Linear):
    """(B, L, D) -> (B, L, hidden)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.inner = HEAD * max(1, min(16, width // HEAD))
        self.queries = nn.Parameter(torch.randn(QUERIES, self.inner) * self.inner**-0.5)
        self.norm = nn.LayerNorm(width)
        self.reads = nn.Linear(width, 2 * self.inner)  # keys and values of the tokens
        self.found = nn.Linear(self.inner, 2 * self.inner)  # keys and values of the queries' answers
        self.asks = nn.Linear(width, self.inner)
        self.answer = zeroed(nn.Linear(self.inner, width))

    def forward(self, embeds: Tensor) -> Tensor:
        keep = (embeds != 0).any(-1)  # (B, L)
        keep = keep | ~keep.any(1, keepdim=True)  # a prompt of padding alone attends to all of it
        tokens = self.norm(embeds)
        queries = self.queries.expand(len(embeds), -1, -1)
        key, value = self.reads(tokens).chunk(2, -1)
        read = attend(queries, key, value, mask=keep[:, None, None, :])
        mixed = attend(self.asks(tokens), *self.found(read).chunk(2, -1))
        return super().forward(embeds + self.answer(mixed))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of (B, M, W) over (B, L, W); mask (B, 1, 1, L), True = keep."""
    query, key, value = (t.unflatten(2, (-1, HEAD)).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
