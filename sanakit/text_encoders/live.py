"""A text encoder from a transformers model and a tokenizer that are in memory already."""

import copy
from typing import Any

from sanakit.errors import SanakitError
from sanakit.text_encoders.architectures import MODELS
from sanakit.text_encoders.query import with_fields
from sanakit.text_encoders.tokenizers import checked_tokenizer, rows_of
from sanakit.text_encoders.transformer import TransformerEncoder, plain_spec


def wrap_transformer(model: Any, tokenizer: Any, reading: dict[str, Any]) -> TransformerEncoder:
    """A transformers model with its tokenizer as a text encoder, in its own precision and on its own device; it is
    frozen and put into eval mode, a head is left out.

    reading: fields of TextSpec that differ from plain prompts of 64 tokens and the last layer. Raises SK0106 (class),
    SK0126 (tokenizer) or SK0306 (reading).
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    label = type(model).__name__
    if kind not in MODELS:
        raise SanakitError(
            "SK0106", f"a {label} is a {kind or 'model without model_type'}, expected {', '.join(MODELS)}"
        )
    body = _body(model, *MODELS[kind].partition(".")[::2])
    if body is None:
        raise SanakitError("SK0106", f"a {label} holds no {MODELS[kind]}, which is what reads text in a {kind}")
    if tokenizer is None:
        raise SanakitError(
            "SK0126", f"a {label} was given without a tokenizer", fix="load_text_encoder(model, tokenizer=tokenizer)"
        )
    if getattr(tokenizer, "pad_token", None) is None:
        tokenizer = copy.deepcopy(tokenizer)  # it is given a token to pad with; the caller's stays as it is
    encoder = TransformerEncoder(body, checked_tokenizer(label, tokenizer, rows_of(body)), plain_spec(body))
    encoder.name = label
    if reading:
        encoder.set_spec(with_fields(encoder, reading))
    return encoder


def _body(model: Any, name: str, part: str) -> Any:
    """The module of this class in the model, itself included, or a part of it; None where there is none."""
    body = next((module for module in model.modules() if type(module).__name__ == name), None)
    return getattr(body, part, None) if body is not None and part else body
