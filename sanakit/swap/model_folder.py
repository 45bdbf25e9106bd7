"""RUN/model: the core as diffusers saves it, whole and plain, and a card that `--base path:DIR` and `sample` read."""

import json
import shutil
from typing import TYPE_CHECKING, Any

from diffusers import SanaTransformer2DModel

from sanakit.adapters import fresh_core
from sanakit.core.dit import save_core
from sanakit.distributed import whole
from sanakit.evaluation.held_out import HeldOut
from sanakit.folders import from_anywhere
from sanakit.formats.pipeline_folder import save_null
from sanakit.strategies.base import Strategy
from sanakit.swap.encoder_training import save_encoder

if TYPE_CHECKING:
    from sanakit.swap.context import Swap


def write_model(swap: "Swap", system: Any, strategy: str, result: HeldOut, *, with_encoder: bool = False) -> None:
    """`model/`: the core as diffusers saves it, and a card that `--base path:DIR` and `sample` read.

    with_encoder: with the text encoder that was trained beside it.
    """
    folder = swap.run.path / "model"
    save_core(system.core, folder)
    save_null(system.text_encoder, folder)
    encoder = from_anywhere(swap.text_encoder_name or swap.base.card["text_encoder"])
    if with_encoder:
        shutil.rmtree(folder / "text", ignore_errors=True)
        encoder = save_encoder(system.text_encoder, folder)
    is_vae = swap.config.kind == "vae"
    card = {
        "recipe": f"sanakit, strategy {strategy}, {swap.config.train.steps} steps",
        "seed": swap.config.train.seed,
        "base": from_anywhere(swap.base.name),
        "embedded": swap.base.embedded,
        "vae": from_anywhere(swap.config.vae.name or swap.base.card["vae"]),
        "scaling_factor": swap.config.vae.scaling_factor if is_vae else swap.base.card.get("scaling_factor"),
        "text_encoder": encoder,
        "image_size": system.image_size,
        "flow_shift": system.flow_shift,
        "data": {"source": swap.images.source, "fingerprint": swap.images.fingerprint},
        "quality": {"held_out_loss": result.loss, "relative_error": float(swap.target.relative(result).mean())},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def gathered(core: SanaTransformer2DModel, strategy: type[Strategy]) -> SanaTransformer2DModel:
    """A core whose parameters are whole again after sharded training; any other core as it is."""
    if not any(hasattr(p, "full_tensor") for p in core.parameters()):
        return core
    plain = fresh_core(core)
    strategy.parameter_groups(plain)
    plain.load_state_dict({k: whole(v) for k, v in core.state_dict().items()})
    return plain
