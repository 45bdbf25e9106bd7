"""Low-rank adapters out, before they are folded into the core: the form that diffusers and peft read.

The adapter alone does not carry a swap: the interface layers (input, output, caption layers) are new layers,
kept beside it.
"""

from pathlib import Path

import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from safetensors.torch import save_file

from sanakit.core.dit import group_of

INTERFACE_FILE = "interface_layers.safetensors"
INTERFACE = ("input", "output", "caption")


def save_lora(core: SanaTransformer2DModel, folder: Path) -> None:
    """pytorch_lora_weights.safetensors, as `SanaPipeline.load_lora_weights` reads it,
    and the interface layers under the core's names."""
    from peft.utils import get_peft_model_state_dict

    SanaPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(core),
        transformer_lora_adapter_metadata=core.peft_config["default"].to_dict(),
    )
    interface = {k: torch.clone(v).cpu() for k, v in core.state_dict().items() if group_of(k) in INTERFACE}
    save_file(interface, folder / INTERFACE_FILE)
