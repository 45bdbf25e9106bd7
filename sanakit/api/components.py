"""Which component of a base is replaced, from the arguments that `plan`, `swap` and `race` share."""

from typing import Any

from sanakit.api.load import load_text_encoder, load_vae
from sanakit.errors import SanakitError
from sanakit.text_encoders import TextEncoder
from sanakit.vaes import VAE


def load_candidate(vae: Any, text_encoder: Any) -> VAE | TextEncoder:
    """The one component that is given. Raises SK0104 for both or none, or what loading it raises."""
    require_one(vae, text_encoder)
    return load_vae(vae) if vae is not None else load_text_encoder(text_encoder)


def require_one(vae: Any, text_encoder: Any) -> None:
    """Raises SK0104 where not exactly one component is given."""
    if (vae is None) == (text_encoder is None):
        raise SanakitError(
            "SK0104",
            f"a swap replaces one component, found {'neither vae nor' if vae is None else 'both vae and'} text_encoder",
            fix="Give one of vae= and text_encoder=; to swap both, swap one, then the other in the result.",
        )


def label_of(component: VAE | TextEncoder) -> str:
    """What results call a component."""
    return component.name or type(component).__name__
