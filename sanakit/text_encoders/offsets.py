"""Where every token of a prompt stands in it, from fast tokenizers: what pairs the tokens of two encoders."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sanakit.text_encoders.tokenizers import called

if TYPE_CHECKING:
    from sanakit.text_encoders.base import TextEncoder


def token_offsets(encoder: "TextEncoder", prompts: list[str]) -> Tensor | None:
    """Character span [start, end) of every token that the encoder gives, (B, L, 2); special, padded and instruction
    tokens span nothing, (0, 0). None where the tokenizer cannot tell (slow ones, and those of other libraries)."""
    prefix, length = encoder.spec.instruction, encoder.spec.max_tokens
    read = [prompt.lower().strip() for prompt in prompts] if encoder.spec.lower_case else prompts
    spans = _spans(encoder, [prefix + prompt for prompt in read], length)
    if spans is None:
        return None
    spans = (spans - len(prefix)).clamp_min(0)
    cut = [len(a) - len(a.lstrip()) if a is not b else 0 for a, b in zip(prompts, read, strict=True)]
    stands = (spans[..., 1] > spans[..., 0])[..., None]
    return spans + stands * torch.tensor(cut).reshape(-1, 1, 1)


def _spans(encoder: "TextEncoder", prompts: list[str], length: int) -> Tensor | None:
    tokenizer: Any = getattr(encoder, "tokenizer", None)
    if hasattr(tokenizer, "encode_batch"):  # tokenizers.Tokenizer
        spans = torch.zeros(len(prompts), length, 2, dtype=torch.long)
        for row, encoding in zip(spans, tokenizer.encode_batch(prompts), strict=True):
            kept = torch.tensor(encoding.offsets[:length], dtype=torch.long).reshape(-1, 2)
            row[: len(kept)] = kept
        return spans
    if not getattr(tokenizer, "is_fast", False):
        return None
    if hasattr(encoder, "tokenize"):
        batch, keep = encoder.tokenize(prompts, return_offsets_mapping=True)
        return torch.as_tensor(batch["offset_mapping"])[:, keep].long()
    options = {"padding": "max_length", "truncation": True, "max_length": length, "padding_side": "right"}
    return torch.tensor(called(tokenizer, prompts, return_offsets_mapping=True, **options)["offset_mapping"])
