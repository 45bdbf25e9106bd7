"""Closed-form alignment of the caption projection to another text encoder.

The new first layer is the ridge solution that gives every token of the candidate the base's first-layer output
(before the activation) for the same characters; tokens of two tokenizers are paired by offsets (tokens.py). Marks at
the begin and end of a prompt, where attention sinks live, are paired with the base's; padding takes no part. Where a
tokenizer gives no offsets, each caption's mean token is mapped instead, and the result says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn

from sanakit.alignment.cross_moments import CrossMoments
from sanakit.alignment.tokens import pair_tokens
from sanakit.data.live import CaptionRows
from sanakit.text_encoders import PromptEmbeds, TextEncoder

CHUNK = 512  # captions read at once, fewer where they would take more than CHUNK_BYTES with MOST_TOKENS tokens each
CHUNK_BYTES, MOST_TOKENS, FP32 = 512 << 20, 300, 4
CAPTIONS = 16_384  # that are read
NULL_EVERY = 10  # captions to one null prompt: the share in which training drops them
PENALTY = 1e-2


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The same captions in both encoders' embeddings. spans: (N, L, 2) offsets of both sides' tokens, where both give
    them; note: why not."""

    candidate: CaptionRows
    base: CaptionRows
    spans: tuple[Tensor, Tensor] | None = None
    note: str = ""


def pair_captions(
    candidate: CaptionRows,
    base: CaptionRows,
    texts: Sequence[str] | None,
    encoder: TextEncoder,
    base_encoder: TextEncoder,
) -> Captions:
    """Captions with the offsets of their tokens. texts: as they were written."""
    if not texts:
        return Captions(candidate=candidate, base=base, note="the data holds no texts: mean tokens are mapped")
    texts = list(texts[:CAPTIONS])
    offsets = [e.offsets(texts) for e in (encoder, base_encoder)]
    silent = [
        e.name or type(e).__name__ for e, spans in zip((encoder, base_encoder), offsets, strict=True) if spans is None
    ]
    if silent:
        return Captions(
            candidate=candidate, base=base, note=f"no offsets of {' and '.join(silent)}: mean tokens are mapped"
        )
    return Captions(candidate=candidate, base=base, spans=(offsets[0], offsets[1]))  # type: ignore[arg-type]


def pool(prompt: PromptEmbeds) -> Tensor:
    """Masked mean over tokens. (B, D)"""
    return mean_tokens(prompt.embeds.float(), prompt.mask)


def mean_tokens(tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, L, D) over mask (B, L) -> (B, D)."""
    keep = mask[..., None].float()
    return (tokens * keep).sum(1) / keep.sum(1).clamp_min(1)


def align_caption(
    core: SanaTransformer2DModel,
    base_core: SanaTransformer2DModel,
    captions: Captions,
    nulls: tuple[PromptEmbeds, PromptEmbeds] | None = None,
) -> dict[str, object]:
    """Set `core.caption_projection.linear_1` from paired captions, and the null prompts of both sides.

    Returns caption_r2, caption_pairing ("tokens" or "mean tokens") and caption_note where there is something to say.
    """
    layer, base_layer = core.caption_projection.linear_1, base_core.caption_projection.linear_1
    moments = CrossMoments.empty(layer.in_features, layer.out_features)
    total = min(CAPTIONS, len(captions.candidate), *(len(s) for s in captions.spans or ()))
    values = sum(encoder_layer.in_features for encoder_layer in (layer, base_layer)) * MOST_TOKENS
    chunk = max(1, min(CHUNK, CHUNK_BYTES // (FP32 * values)))
    for start in range(0, total, chunk):
        rows = slice(start, min(start + chunk, total))
        spans = tuple(s[rows] for s in captions.spans) if captions.spans else None
        moments.add(*paired_rows(captions.candidate[rows], captions.base[rows], base_layer, spans))
    if nulls is not None:
        null, base_null = nulls
        x, y = paired_rows(null, base_null, base_layer, null_spans(nulls) if captions.spans else None)
        moments.add(x.repeat(max(1, total // NULL_EVERY), 1), y.repeat(max(1, total // NULL_EVERY), 1))
    weight, bias = moments.ridge(penalty=PENALTY)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    note = "; ".join(part for part in (captions.note, moments.note) if part)
    pairing = "tokens" if captions.spans else "mean tokens"
    return {"caption_r2": moments.r2(weight), "caption_pairing": pairing} | ({"caption_note": note} if note else {})


def null_spans(nulls: tuple[PromptEmbeds, PromptEmbeds]) -> tuple[Tensor, ...]:
    """Offsets of prompts without a character: only the marks are paired."""
    return tuple(torch.zeros(1, prompt.mask.shape[1], 2) for prompt in nulls)


@torch.no_grad()
def paired_rows(
    candidate: PromptEmbeds, base: PromptEmbeds, base_layer: nn.Module, spans: tuple[Tensor, ...] | None
) -> tuple[Tensor, Tensor]:
    """Candidate tokens (N, D) that have a partner and the base's first-layer output for them (N, E); mean tokens
    without spans."""
    device = next(base_layer.parameters()).device
    goals = base_layer(base.embeds.to(device).float())
    if spans is None:
        return pool(candidate).to(device), mean_tokens(goals, base.mask.to(device))
    shares = pair_tokens(spans[0], spans[1], candidate.mask, base.mask)
    paired = shares.sum(2) > 0
    paired_goals = torch.einsum("blm,bme->ble", shares.to(device), goals)
    return candidate.embeds[paired].float().to(device), paired_goals[paired.to(device)]
