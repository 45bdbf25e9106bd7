"""Low-rank adapters out, before they are folded into the core: the form that diffusers and peft read.

The adapter alone does not carry a swap: layers that start or train outside it are kept beside it, whole.
"""

from pathlib import Path

import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

LAYERS_FILE = "interface_layers.safetensors"
RECIPE = f"""from diffusers import SanaTransformer2DModel
from safetensors.torch import load_file

base = SanaTransformer2DModel.from_pretrained("BASE")  # of a Sprint base: sanakit.load_base("BASE").core
core = SanaTransformer2DModel.from_config(SanaTransformer2DModel.load_config("DIR/transformer"))
core.load_state_dict(base.state_dict() | load_file("DIR/lora/{LAYERS_FILE}"))
core.load_lora_adapter("DIR/lora", weight_name="pytorch_lora_weights.safetensors")
"""


def save_lora(core: SanaTransformer2DModel, folder: Path, *, base: SanaTransformer2DModel) -> None:
    """pytorch_lora_weights.safetensors, as `SanaPipeline.load_lora_weights` reads it, and beside it every other tensor
    that is not the base core's: the new interface layers, and what a closed form of the blocks has solved.

    core: with its adapters not folded in yet. base: the core that it was swapped from.
    """
    from peft.utils import get_peft_model_state_dict

    SanaPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(core),
        transformer_lora_adapter_metadata=core.peft_config["default"].to_dict(),
    )
    save_file(changed_tensors(core, base), folder / LAYERS_FILE)


def changed_tensors(core: SanaTransformer2DModel, base: SanaTransformer2DModel) -> dict[str, Tensor]:
    """Tensors outside the low-rank adapters that the base's core lacks or holds otherwise, on the CPU, under the names
    of a plain core."""
    before = {name: tensor.detach().cpu() for name, tensor in base.state_dict().items()}
    plain = {
        name.replace(".base_layer.", "."): tensor.detach().cpu()
        for name, tensor in core.state_dict().items()
        if ".lora_" not in name
    }
    return {
        name: torch.clone(tensor)
        for name, tensor in plain.items()
        if name not in before or not torch.equal(tensor, before[name])
    }
