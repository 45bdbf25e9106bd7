"""Interchangeable text encoders."""

from sanakit.text_encoders.base import TEXT_ENCODERS, PromptEmbeds, TextEncoder, load_text_encoder, with_layer

__all__ = ["TEXT_ENCODERS", "PromptEmbeds", "TextEncoder", "load_text_encoder", "with_layer"]
