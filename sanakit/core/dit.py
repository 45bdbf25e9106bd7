"""Loading the DiT and naming its parameter groups.

Every strategy is a rule over five groups: `input` (patch embedding), `output` (head), `caption` (projection and
norm), `cross_attention` (attn2) and `core` (the rest).
"""

import json
from pathlib import Path

import torch
from diffusers import SanaTransformer2DModel
from torch import nn

from sanakit.adapters import adapters_of, attach
from sanakit.errors import SanakitError
from sanakit.weights.find import DIFFUSERS, find_weights, read_tensors, said
from sanakit.weights.load import load_model
from sanakit.weights.save import save_model

ADAPTERS_FILE = "adapters.json"  # beside a core's weights, where it has adapters with modules of their own
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


def save_core(core: SanaTransformer2DModel, folder: Path) -> None:
    """As diffusers saves it; the names of its adapters beside it."""
    save_model(core, folder)
    names = folder / ADAPTERS_FILE
    if adapters_of(core):
        names.write_text(json.dumps({"adapters": adapters_of(core)}) + "\n", encoding="utf-8")
    else:
        names.unlink(missing_ok=True)


def load_core(folder: Path) -> SanaTransformer2DModel:
    """A folder of `save_core` or diffusers' `save_pretrained`, in fp32. Raises SK0101 (adapter), SK0107, or what
    `find_weights` raises."""
    if names := saved_adapters(folder):
        return _load_adapted(folder, names)
    if not folder.is_dir():
        raise SanakitError("SK0107", f"{folder} is not a folder")
    core = load_model(
        folder,
        DIFFUSERS,
        lambda place: SanaTransformer2DModel.from_pretrained(
            place, torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        ),
    )
    return fold_guidance(core) if core.config.guidance_embeds else core


def saved_adapters(folder: Path) -> tuple[str, ...]:
    """Names of the adapters that a saved core has. Raises SK0107."""
    path = folder / ADAPTERS_FILE
    if not path.is_file():
        return ()
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8"))["adapters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SanakitError("SK0107", f"{path}: {error}") from error


def _load_adapted(folder: Path, names: tuple[str, ...]) -> SanaTransformer2DModel:
    try:
        core = SanaTransformer2DModel.from_config(SanaTransformer2DModel.load_config(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SanakitError("SK0107", f"{folder}: {said(error)}") from error
    state = {k: v for file in find_weights(folder, DIFFUSERS).files for k, v in read_tensors(file).items()}
    for name in names:
        attach(core, name)
    try:
        core.load_state_dict(state)
    except RuntimeError as error:
        raise SanakitError("SK0107", f"{folder}: {said(error)}") from error
    return core.float()


def fold_guidance(core: SanaTransformer2DModel, guidance_scale: float = 4.5) -> SanaTransformer2DModel:
    """A Sana-Sprint core as a plain one: its guidance embedding, constant at a fixed scale, joins the time embedding's
    bias. Exact at that scale. Sprint counts time in sigma itself (arXiv 2503.09641, dense time embedding), hence
    `timestep_scale` 0.001."""
    embed = core.time_embed
    with torch.no_grad():
        guidance = torch.tensor([guidance_scale * core.config.guidance_embeds_scale])
        bias = embed.guidance_embedder(embed.guidance_condition_proj(guidance))[0]
    config = {k: v for k, v in core.config.items() if not k.startswith("_")}
    plain = SanaTransformer2DModel(**config | {"guidance_embeds": False, "timestep_scale": 0.001})
    names = {"time_embed.timestep_embedder": "time_embed.emb.timestep_embedder"}
    state = {}
    for name, tensor in core.state_dict().items():
        if not name.startswith("time_embed.guidance_embedder"):
            stem = name.rpartition(".linear_")[0]
            state[name.replace(stem, names[stem]) if stem in names else name] = tensor
    state["time_embed.emb.timestep_embedder.linear_2.bias"] = (
        bias + state["time_embed.emb.timestep_embedder.linear_2.bias"]
    )
    plain.load_state_dict(state)
    return plain


def new_core(config: dict, *, seed: int) -> SanaTransformer2DModel:
    """A randomly initialised core. `caption_norm` starts at 0.01, as Sana trains it; ones make the loss diverge."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        core = SanaTransformer2DModel(**config)
    start_small(core)
    return core


def start_small(core: SanaTransformer2DModel) -> None:
    """What a core that is trained from scratch must start with; see `new_core`."""
    nn.init.constant_(core.caption_norm.weight, 0.01)
    nn.init.zeros_(core.proj_out.weight)
