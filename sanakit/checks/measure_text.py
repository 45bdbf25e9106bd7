"""What gates of stage component read of a text encoder: pure measurements, no threshold."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sanakit.text_encoders import PromptEmbeds, TextEncoder

REPEATED = 16  # prompts that are encoded twice, and with less padding
LAST_WORDS = ("apple", "river", "b", "seven")


def text_evidence(
    encoder: TextEncoder, prompts: list[str], encoded: PromptEmbeds | None = None, *, base_truncated: int | None = None
) -> dict[str, Any]:
    """Everything that the gates read; encoded: the prompts' embeddings where they are at hand. base_truncated: prompts
    that the base's own encoder cuts short."""
    encoded = encoded or encoder.encode(prompts)
    few = prompts[:REPEATED]
    once, again = encoder.encode(few), encoder.encode(few)  # batches alike: half precision rounds by their shape
    pooled = pool(encoded)
    pairs = pooled @ pooled.T
    distinct = ~torch.eye(len(prompts), dtype=torch.bool)
    kept_share, last_word_change = changes_of_the_last_word(encoder, few)
    evidence: dict[str, Any] = {
        "nonfinite_embeddings": int((~encoded.embeds.isfinite()).sum()),
        "embedding_repeat_difference": difference(again, once),
        "empty_share": empty_share(encoder, encoded, prompts),
        "mask_of_one_word": float(encoder.encode(["a"], instruction=False).mask.float().mean()),
        "changes_kept_share": kept_share,
        "last_word_change": last_word_change,
        "token_cosine": token_cosine(encoded),
        "nearest_cosine": float(pairs[distinct].median()),
        "truncated": encoded.truncated,
        "prompts": len(prompts),
    }
    if base_truncated is not None:
        evidence["base_truncated"] = base_truncated
    if not encoder.spec.attend_padding and (padding := padding_difference(encoder, few)) is not None:
        evidence["padding_difference"] = padding
    if encoder.spec.instruction:
        evidence["instruction_effect"] = difference(encoder.encode(few, instruction=False), once)
    if encoder.kept_null is not None:
        evidence["null_difference"] = difference(encoder.kept_null, encoder.encode([""], instruction=False))
    config = getattr(encoder.model, "config", None)
    hidden, vocabulary = (getattr(config, key, None) for key in ("hidden_size", "vocab_size"))
    if hidden and vocabulary:
        evidence |= {"embedding_width": encoder.spec.embed_dim, "hidden_width": hidden, "vocabulary": vocabulary}
    return evidence


def pool(encoded: PromptEmbeds) -> Tensor:
    """Mean of the kept tokens, of length 1. (N, D)"""
    weights = encoded.mask[..., None].float()
    return F.normalize((encoded.embeds * weights).sum(1) / weights.sum(1).clamp_min(1), dim=-1)


def difference(first: PromptEmbeds, second: PromptEmbeds) -> float:
    return float((first.embeds - second.embeds).norm() / second.embeds.norm().clamp_min(1e-9))


def empty_share(encoder: TextEncoder, encoded: PromptEmbeds, prompts: list[str]) -> float:
    """Share of the prompts with words whose embedding is zero, or the null prompt's."""
    null = encoder.null()
    size = encoded.embeds.flatten(1).norm(dim=1)
    away = (encoded.embeds - null.embeds).flatten(1).norm(dim=1)
    spoken = torch.tensor([bool(prompt.strip()) for prompt in prompts])
    empty = (size < 1e-6) | (away < 1e-4 * null.embeds.norm().clamp_min(1e-6))
    return float((empty & spoken).float().sum() / spoken.sum().clamp_min(1))


def padding_difference(encoder: TextEncoder, prompts: list[str]) -> float | None:
    """Relative change of the kept tokens of the shorter half of the prompts when there is less padding. Prompts that
    fill the caption are cut; None where even a 64th of them fills it."""
    for share in (1, 4, 16, 64):
        texts = [prompt[: max(1, len(prompt) // share)] for prompt in prompts]
        full = encoder.encode(texts, instruction=False)
        order = full.mask.sum(1).argsort()[: max(1, len(texts) // 2)]
        length = max(2, int(full.mask[order].sum(1).max()))  # the fewest tokens that a record may name
        kept = full.mask[order, :length, None]
        if length >= encoder.spec.max_tokens or not kept.any():
            continue
        with shortened(encoder, length):
            less = encoder.encode([texts[i] for i in order.tolist()], instruction=False)
        changed = (less.embeds - full.embeds[order, :length]) * kept
        return float(changed.norm() / (full.embeds[order, :length] * kept).norm().clamp_min(1e-9))
    return None


@contextmanager
def shortened(encoder: TextEncoder, max_tokens: int) -> Iterator[None]:
    spec = encoder.spec
    encoder.spec = replace(spec, max_tokens=max_tokens)
    try:
        yield
    finally:
        encoder.spec = spec


@torch.no_grad()
def changes_of_the_last_word(encoder: TextEncoder, prompts: list[str]) -> tuple[float, float]:
    """Prompts in two versions that differ in their last word. The share of them in which the token that changes most is
    one that the mask keeps, and the median over them of the largest change of a kept token, relative to its norm."""
    hits, changes = [], []
    for number, prompt in enumerate(prompts[:8]):
        words = [LAST_WORDS[(number + k) % len(LAST_WORDS)] for k in (0, 1)]
        embeds, mask = _with_last_words(encoder, " ".join(prompt.split()[:3]), words)
        embeds, mask = embeds.cpu(), mask.cpu()
        change = (embeds[0] - embeds[1]).float().norm(dim=-1)
        kept = mask[0] | mask[1]
        hits.append(bool(kept[int(change.argmax())]))
        relative = change / embeds.float().norm(dim=-1).mean(0).clamp_min(1e-9)
        changes.append(float((relative * kept).max()))
    return sum(hits) / len(hits), float(torch.tensor(changes).median())


def _with_last_words(encoder: TextEncoder, head: str, words: list[str]) -> tuple[Tensor, Tensor]:
    """Embeddings and mask of the head with each word behind it. A head that leaves the words no room is halved: three
    "words" of a script without spaces are a whole caption."""
    while True:
        embeds, mask, truncated = encoder._encode([f"{head} {word}".strip() for word in words])
        if not truncated or not head:
            return embeds, mask
        head = head[: len(head) // 2]


def token_cosine(encoded: PromptEmbeds) -> float:
    """Median cosine of neighbouring kept tokens."""
    cosines = F.cosine_similarity(encoded.embeds[:, :-1], encoded.embeds[:, 1:], dim=-1)
    both = encoded.mask[:, :-1] & encoded.mask[:, 1:]
    return float(cosines[both].median()) if both.any() else 0.0
