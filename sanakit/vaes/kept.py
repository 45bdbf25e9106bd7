"""A VAE whose decoder was trained and whose encoder was not: its latents are those of the VAE that it came from.

`latents.json` beside the weights states whose latents they are, with a hash of everything but the decoder. Where that
hash is still true, caches, null embeddings and cores of the earlier VAE serve this one.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sanakit.errors import SanakitError, warning_text

if TYPE_CHECKING:
    from sanakit.vaes.base import VAE

FILE = "latents.json"


@dataclass(frozen=True, kw_only=True)
class KeptLatents:
    """fingerprint: of the VAE that the latents are of. decoder: names of the parameters that may differ from its.
    encoder: hash of all others."""

    fingerprint: str
    decoder: tuple[str, ...]
    encoder: str

    def write(self, folder: Path) -> None:
        record = {"fingerprint": self.fingerprint, "encoder": self.encoder, "decoder": list(self.decoder)}
        (folder / FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def encoder_hash(vae: "VAE", decoder: tuple[str, ...]) -> str:
    """Of every parameter and buffer of the model but those named and the normalisation's, with the geometry."""
    return vae.hash_without(decoder)


def read_kept(vae: "VAE", folder: Path) -> KeptLatents | None:
    """What `folder` states, where the VAE that was loaded from it agrees; None where nothing is stated. Warns (SK0220)
    where the encoder is another than stated. Raises SK0106 for a file that cannot be read."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        decoder = tuple(str(name) for name in record["decoder"])
        kept = KeptLatents(fingerprint=record["fingerprint"], decoder=decoder, encoder=record["encoder"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SanakitError("SK0106", f"{path}: {type(error).__name__}: {error}") from error
    if encoder_hash(vae, kept.decoder) == kept.encoder:
        return kept
    warnings.warn(warning_text("SK0220", f"{path} was written for other weights of the encoder"), stacklevel=3)
    return None
