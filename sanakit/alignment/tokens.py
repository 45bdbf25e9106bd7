"""Tokens of two tokenizers paired by the characters that they stand for."""

import torch
from torch import Tensor


def pair_tokens(spans: Tensor, base_spans: Tensor, mask: Tensor, base_mask: Tensor) -> Tensor:
    """Share of every base token in a candidate's token, by characters in common: (B, L, L_base), rows sum to 1 or 0.

    spans (B, L, 2), base_spans (B, L_base, 2): characters in the same prompts, (0, 0) for special tokens. A special
    token that begins (ends) a prompt is paired with the base's; what has no partner gets a row of zeros.
    """
    starts = torch.maximum(spans[:, :, None, 0], base_spans[:, None, :, 0])
    ends = torch.minimum(spans[:, :, None, 1], base_spans[:, None, :, 1])
    shared = (ends - starts).clamp_min(0).float() * (mask[:, :, None] & base_mask[:, None, :])
    for edge in (_first, _last):
        (mine, has_mine), (theirs, has_theirs) = edge(spans, mask), edge(base_spans, base_mask)
        rows = (has_mine & has_theirs).nonzero()[:, 0]
        shared[rows, mine[rows], theirs[rows]] = 1.0
    return shared / shared.sum(2, keepdim=True).clamp_min(1e-9)


def special(spans: Tensor, mask: Tensor) -> Tensor:
    """Tokens that stand for no character: begin, end, and other marks. (B, L)"""
    return mask & (spans[..., 1] <= spans[..., 0])


def _first(spans: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(spans), dtype=torch.long), special(spans, mask)[:, 0]


def _last(spans: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The last token, where it is special and not the first one as well."""
    at = (mask.sum(1) - 1).clamp_min(0)
    return at, special(spans, mask).gather(1, at[:, None])[:, 0] & (at > 0)
