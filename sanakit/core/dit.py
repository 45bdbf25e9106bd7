"""Loading the DiT and naming its parameter groups.

Every strategy is a rule over five groups: `input` (patch embedding), `output` (head), `caption` (projection and
norm), `cross_attention` (attn2) and `core` (the rest).
"""

from pathlib import Path

import torch
from diffusers import SanaTransformer2DModel
from torch import nn

from sanakit.errors import SanakitError

GROUPS = ("input", "output", "caption", "cross_attention", "core")


def group_of(parameter_name: str) -> str:
    """Parameter group of a SanaTransformer2DModel parameter."""
    head, _, tail = parameter_name.partition(".")
    if head == "patch_embed":
        return "input"
    if head in ("proj_out", "scale_shift_table"):
        return "output"
    if head in ("caption_projection", "caption_norm"):
        return "caption"
    if head == "transformer_blocks" and tail.split(".")[1] == "attn2":
        return "cross_attention"
    return "core"


def parameters_by_group(core: nn.Module) -> dict[str, list[nn.Parameter]]:
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for name, parameter in core.named_parameters():
        groups[group_of(name)].append(parameter)
    return groups


def load_core(folder: Path) -> SanaTransformer2DModel:
    """A `save_pretrained` folder of the core, in fp32. Raises SK0107."""
    try:
        core, report = SanaTransformer2DModel.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise SanakitError("SK0107", f"{folder}: {str(error).splitlines()[0]}") from error
    wrong = report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]
    if wrong:
        raise SanakitError("SK0107", f"{folder}: tensors do not fit the config, first {next(iter(wrong))}")
    return core


def new_core(config: dict, *, seed: int) -> SanaTransformer2DModel:
    """A randomly initialised core. `caption_norm` starts at 0.01, as Sana trains it; ones make the loss diverge."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        core = SanaTransformer2DModel(**config)
        nn.init.constant_(core.caption_norm.weight, 0.01)
        nn.init.zeros_(core.proj_out.weight)
    return core
