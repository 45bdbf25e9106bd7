"""Interchangeable text encoders."""

from sanakit.text_encoders.base import TEXT_ENCODERS, PromptEmbeds, TextEncoder

__all__ = ["TEXT_ENCODERS", "PromptEmbeds", "TextEncoder"]
