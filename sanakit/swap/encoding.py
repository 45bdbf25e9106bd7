"""Whether a swap's images and captions are encoded ahead or live."""

from pathlib import Path
from typing import TYPE_CHECKING

from sanakit.config import Config
from sanakit.data.ahead import choose_ahead, free_bytes
from sanakit.files import cache_dir
from sanakit.vaes import VAE

if TYPE_CHECKING:
    from sanakit.swap.context import Swap


def choose_encoding(swap: "Swap", config: Config) -> Config:
    """The configuration with `data.latents` and `data.embeddings` decided: ahead where the free disk holds what the
    cache would take, else live."""
    data = config.data
    if "auto" not in (data.latents, data.embeddings):
        return config
    vaes, encoders = [], []
    if not (swap.bare or swap.trains_vae_alone):
        vaes, encoders = [swap.base_system.vae], [swap.base_system.text_encoder]
    (vaes if isinstance(swap.candidate, VAE) else encoders).append(swap.candidate)  # type: ignore[arg-type]
    chosen = choose_ahead(
        num_images=len(swap.images),
        num_captions=int(swap.images.caption_counts().sum()),
        latents=[vae.spec.shape(data.size, data.size) for vae in vaes],
        embeddings=[(encoder.spec.max_tokens, encoder.spec.embed_dim) for encoder in encoders],
        free=free_bytes(Path(data.cache) if data.cache else cache_dir()),
        filled=data.cache is not None,
    )
    changed = {name: value for name, value in chosen.items() if getattr(data, name) == "auto"}
    return config.model_copy(update={"data": data.model_copy(update=changed)})
