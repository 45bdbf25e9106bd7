"""Closed-form alignment of the caption projection to another text encoder.

The new first layer is the ridge solution that gives every token of the candidate the base's first-layer output
(before the activation) for the same characters; tokens of two tokenizers are paired by offsets (tokens.py). Marks at
the begin and end of a prompt, where attention sinks live, are paired with the base's; padding takes no part. Where a
tokenizer gives no offsets, each caption's mean token is mapped instead, and the result says so. Where the base reads
other captions than the candidate (captions_base), as in another language, mean tokens are mapped first, and under that
map tokens are paired by optimal transport (transport.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn

from sanakit.alignment.cross_moments import CrossMoments
from sanakit.alignment.tokens import pair_tokens, special
from sanakit.alignment.transport import has_transport, transport_tokens
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
    them; note: why not. translated: the base reads other texts, so that offsets tell the marks of a prompt alone."""

    candidate: CaptionRows
    base: CaptionRows
    spans: tuple[Tensor, Tensor] | None = None
    note: str = ""
    translated: bool = False

    @property
    def paired_spans(self) -> tuple[Tensor, Tensor] | None:
        """The offsets where they pair single tokens."""
        return None if self.translated else self.spans


def pair_captions(
    candidate: CaptionRows,
    base: CaptionRows,
    texts: Sequence[str] | None,
    encoder: TextEncoder,
    base_encoder: TextEncoder,
    base_texts: Sequence[str] | None = None,
) -> Captions:
    """Captions with the offsets of their tokens. texts: as they were written; base_texts: what the base reads in their
    place, by default the same."""
    if not texts:
        return Captions(candidate=candidate, base=base, note="the data holds no texts: mean tokens are mapped")
    texts = list(texts[:CAPTIONS])
    read = texts if base_texts is None else list(base_texts[:CAPTIONS])
    translated = read != texts
    offsets = [e.offsets(some) for e, some in ((encoder, texts), (base_encoder, read))]
    silent = [
        e.name or type(e).__name__ for e, spans in zip((encoder, base_encoder), offsets, strict=True) if spans is None
    ]
    spans = None if silent else (offsets[0], offsets[1])
    if translated:
        note = "" if has_transport() else "the package POT is not installed: mean tokens are mapped, not single ones"
    else:
        note = f"no offsets of {' and '.join(silent)}: mean tokens are mapped" if silent else ""
    return Captions(candidate=candidate, base=base, spans=spans, note=note, translated=translated)  # type: ignore[arg-type]


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

    Returns caption_r2, caption_pairing ("tokens", "mean tokens", or "transported tokens" of translated captions) and
    caption_note where there is something to say.
    """
    layer, base_layer = core.caption_projection.linear_1, base_core.caption_projection.linear_1
    moments = gather_pairs(captions, layer, base_layer, nulls)
    weight, bias = moments.ridge(penalty=PENALTY)
    pairing = "tokens" if captions.paired_spans else "mean tokens"
    if captions.translated and has_transport():
        moments = gather_pairs(captions, layer, base_layer, nulls, map_of_means=(weight, bias))
        weight, bias = moments.ridge(penalty=PENALTY)
        pairing = "transported tokens"
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    note = "; ".join(part for part in (captions.note, moments.note) if part)
    return {"caption_r2": moments.r2(weight), "caption_pairing": pairing} | ({"caption_note": note} if note else {})


def gather_pairs(
    captions: Captions,
    layer: nn.Linear,
    base_layer: nn.Linear,
    nulls: tuple[PromptEmbeds, PromptEmbeds] | None,
    map_of_means: tuple[Tensor, Tensor] | None = None,
) -> CrossMoments:
    """Sums over all paired tokens, from which `layer` is solved. map_of_means: weight and bias, under which tokens are
    paired by transport; without them mean tokens are paired where no offsets pair single ones."""
    moments = CrossMoments.empty(layer.in_features, layer.out_features)
    total = min(CAPTIONS, len(captions.candidate), *(len(s) for s in captions.spans or ()))
    values = sum(encoder_layer.in_features for encoder_layer in (layer, base_layer)) * MOST_TOKENS
    chunk = max(1, min(CHUNK, CHUNK_BYTES // (FP32 * values)))
    offsets = captions.paired_spans if map_of_means is None else captions.spans
    for start in range(0, total, chunk):
        rows = slice(start, min(start + chunk, total))
        spans = tuple(s[rows] for s in offsets) if offsets else None
        moments.add(*paired_rows(captions.candidate[rows], captions.base[rows], base_layer, spans, map_of_means))
    if nulls is not None:
        null, base_null = nulls
        x, y = paired_rows(null, base_null, base_layer, null_spans(nulls) if offsets else None)
        moments.add(x.repeat(max(1, total // NULL_EVERY), 1), y.repeat(max(1, total // NULL_EVERY), 1))
    return moments


def null_spans(nulls: tuple[PromptEmbeds, PromptEmbeds]) -> tuple[Tensor, ...]:
    """Offsets of prompts without a character: only the marks are paired."""
    return tuple(torch.zeros(1, prompt.mask.shape[1], 2) for prompt in nulls)


@torch.no_grad()
def paired_rows(
    candidate: PromptEmbeds,
    base: PromptEmbeds,
    base_layer: nn.Module,
    spans: tuple[Tensor, ...] | None,
    map_of_means: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Candidate tokens (N, D) that have a partner and the base's first-layer output for them (N, E); mean tokens
    without spans. map_of_means: tokens are paired by transport under it, and by spans only the marks of a prompt."""
    device = next(base_layer.parameters()).device
    goals = base_layer(base.embeds.to(device).float())
    if spans is None and map_of_means is None:
        return pool(candidate).to(device), mean_tokens(goals, base.mask.to(device))
    if map_of_means is None:
        assert spans is not None
        shares = pair_tokens(spans[0], spans[1], candidate.mask, base.mask)
    else:
        shares = _transported(candidate, base, goals, spans, map_of_means)
    paired = shares.sum(2) > 0
    paired_goals = torch.einsum("blm,bme->ble", shares.to(device), goals)
    return candidate.embeds[paired].float().to(device), paired_goals[paired.to(device)]


def _transported(
    candidate: PromptEmbeds,
    base: PromptEmbeds,
    goals: Tensor,
    spans: tuple[Tensor, ...] | None,
    map_of_means: tuple[Tensor, Tensor],
) -> Tensor:
    """(B, L, L_base) shares by transport; the marks of a prompt, which offsets tell, are paired with the base's."""
    weight, bias = (part.to(goals.device) for part in map_of_means)
    mapped = candidate.embeds.to(goals.device).float() @ weight.T + bias
    if spans is None:
        return transport_tokens(mapped, goals, candidate.mask, base.mask)
    marks = special(spans[0], candidate.mask), special(spans[1], base.mask)
    shares = transport_tokens(mapped, goals, candidate.mask & ~marks[0], base.mask & ~marks[1])
    return shares + pair_tokens(torch.zeros_like(spans[0]), torch.zeros_like(spans[1]), candidate.mask, base.mask) * (
        marks[0][:, :, None] & marks[1][:, None, :]
    )
