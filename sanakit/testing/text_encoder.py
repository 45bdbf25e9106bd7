"""The contract of a text encoder: shapes, mask, padding, determinism, null prompt, truncation, fingerprint."""

from copy import copy
from dataclasses import replace
from typing import Any

import torch

from sanakit.contracts import TextSpec
from sanakit.testing.contract import changed_weight, require, require_close, resolve
from sanakit.text_encoders.base import TEXT_ENCODERS, PromptEmbeds, TextEncoder

OTHER = {"max_tokens": 8, "instruction": "draw", "select": "first-last", "layer": 0, "lower_case": True}
MASKED = "Return (embeddings, mask, truncated) from `_encode`: padded right, mask True for the prompt's own tokens."


def check_text_encoder(encoder: str | type[TextEncoder] | TextEncoder) -> None:
    """A registered name, a class (its `tiny()` twin is checked) or an encoder in memory keeps the contract of
    `TextEncoder`. Raises SK0115, or SK0301 as the encoder itself does."""
    item, name = resolve(encoder, TEXT_ENCODERS)
    if isinstance(item, type):
        right = issubclass(item, TextEncoder)
        require(right, name, f"{item!r} is no subclass of TextEncoder", "Derive it from sanakit's TextEncoder.")
        twin: Any = item
        item = twin.tiny()
    found = f"a {type(item).__name__}, expected a TextEncoder"
    require(isinstance(item, TextEncoder), name, found, "Return cls(...) from `tiny`.")
    require(isinstance(item.spec, TextSpec), name, f"spec is {item.spec!r}", "Set spec = TextSpec(...).")
    _check_shapes(item, name)
    _check_prompts(item, name)
    _check_padding_length(item, name)
    _check_null_and_truncation(item, name)
    _check_frozen(item, name)
    _check_fingerprint(item, name)


def _plain(encoder: TextEncoder, *prompts: str) -> PromptEmbeds:
    return encoder.encode(list(prompts), instruction=False)


def _check_shapes(encoder: TextEncoder, name: str) -> None:
    alone = encoder.encode(["a b"])  # raises SK0301 where the shape is not the declared one
    batch = encoder.encode(["a b", "c d e f g h"])
    kinds = f"embeddings are {alone.embeds.dtype}, the mask {alone.mask.dtype}"
    right = alone.embeds.dtype == torch.float32 and alone.mask.dtype == torch.bool
    require(right, name, f"{kinds}; expected torch.float32 and torch.bool", MASKED)
    require(bool(batch.embeds.isfinite().all()), name, "embeddings are not finite", "Run the model in fp32.")
    ordered = bool((batch.mask.int().diff(dim=1) <= 0).all())
    require(ordered, name, "the mask marks tokens behind padding, expected kept tokens first", MASKED)
    require(bool((batch.embeds[~batch.mask] == 0).all()), name, "padded positions are not zero", MASKED)
    require_close(
        batch.embeds[:1],
        alone.embeds,
        name,
        "a prompt's embedding depends on the other prompts of its batch",
        "Hand the attention mask to the model, and pad to spec.max_tokens always.",
        tolerance=1e-5,
    )


def _check_prompts(encoder: TextEncoder, name: str) -> None:
    embedded, again = _plain(encoder, "a b c", "c b a"), _plain(encoder, "a b c", "c b a")
    fix = "Call eval() on the model: dropout is on."
    require(torch.equal(embedded.embeds, again.embeds), name, "two encodings of the same prompts differ", fix)
    difference = float((embedded.embeds[0] - embedded.embeds[1]).abs().max())
    found = f"'a b c' and 'c b a' differ by {difference:.3g}, expected more than 1e-4"
    require(difference > 1e-4, name, found, "Return the hidden state of every token, not a pooled one.")
    moved = encoder.fingerprint()
    _plain(encoder, "a", "b c d")
    same = encoder.fingerprint() == moved
    require(same, name, "a call changes the fingerprint", "Keep no state of a call in the tokenizer or the model.")


def _check_padding_length(encoder: TextEncoder, name: str) -> None:
    """Padding to another length changes embeddings exactly where the record says that padding is attended to."""
    if encoder.spec.max_tokens < 16:
        return
    other = copy(encoder)
    other.set_spec(replace(encoder.spec, max_tokens=encoder.spec.max_tokens // 2))
    long, short = _plain(encoder, "a b"), _plain(other, "a b")
    count = int(short.mask.sum())
    kept = int(long.mask.sum())
    found = f"'a b' has {kept} tokens of {encoder.spec.max_tokens} and {count} of {other.spec.max_tokens}"
    require(kept == count, name, f"{found}; expected the same number", MASKED)
    same = torch.allclose(long.embeds[:, :count], short.embeds[:, :count], atol=1e-5, rtol=1e-4)
    stated = encoder.spec.attend_padding
    found = (
        f"embeddings {'do not change' if same else 'change'} with the padding, the record says attend_padding={stated}"
    )
    fix = f"State attend_padding={not stated} in TextSpec, or change how the mask is handed to the model."
    require(same != stated, name, found, fix)


def _check_null_and_truncation(encoder: TextEncoder, name: str) -> None:
    null = encoder.null()
    found = f"the null prompt has {len(null)} rows with {int(null.mask.sum())} tokens, expected 1 row with 1 or more"
    fix = "Give the empty prompt one token: attention over nothing is not defined."
    require(len(null) == 1 and bool(null.mask.any()), name, found, fix)
    differs = not torch.equal(null.embeds, encoder.encode(["a b c"]).embeds)
    require(differs, name, "the null prompt is embedded like 'a b c'", "Read the prompt, not the instruction alone.")
    words = "a " * (2 * encoder.spec.max_tokens)
    truncated = encoder.encode([words, "b"]).truncated
    found = f"of two prompts {truncated} count as truncated, expected the one of {2 * encoder.spec.max_tokens} words"
    require(truncated == 1, name, found, "Return how many prompts had more than spec.max_tokens tokens.")


def _check_frozen(encoder: TextEncoder, name: str) -> None:
    asking = [label for label, parameter in encoder.named_parameters() if parameter.requires_grad]
    fix = "Call super().__init__(model, spec), which freezes the model."
    require(not asking, name, f"{len(asking)} parameters ask for gradients, first {asking[:1]}; expected none", fix)
    require(not _plain(encoder, "a").embeds.requires_grad, name, "embeddings carry gradients", fix)
    require(not encoder.model.training, name, "the model is in training mode", fix)


def _check_fingerprint(encoder: TextEncoder, name: str) -> None:
    fix = "Leave `fingerprint` to the base class: caches of embeddings are keyed by it."
    before = encoder.fingerprint()
    require(encoder.fingerprint() == before, name, "two fingerprints of the same encoder differ", fix)
    for key in encoder.policies:
        old = getattr(encoder.spec, key)
        changed = copy(encoder)
        change: dict[str, Any] = {key: not old if isinstance(old, bool) else OTHER[key]}
        changed.set_spec(replace(encoder.spec, **change))
        if changed.spec != encoder.spec:
            follows = changed.fingerprint() != before
            require(follows, name, f"the fingerprint stays the same when {key} changes", fix)
    with changed_weight(encoder.model) as any_weight:
        follows = not any_weight or encoder.fingerprint() != before
    require(follows, name, "the fingerprint stays the same when a weight changes", fix)
