"""Native Sana checkpoints (NVlabs/Sana `.pth`) to diffusers' SanaTransformer2DModel and back, by name.

A native file holds the transformer alone: VAE, text encoder, image size and flow shift are Sana's published ones
unless a `.json` of the same name beside the file states others (the keys of a base's card.json, and `config` for
the core). `y_embedder.y_embedding`, which other converters drop, is kept as the null embedding.
"""

import hashlib
import json
import re
import shutil
import uuid
import zipfile
from pathlib import Path
from typing import Any

import torch
from diffusers import SanaTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from sanakit.core.dit import fold_guidance
from sanakit.errors import SanakitError
from sanakit.files import PICKLES, refuse_pointer
from sanakit.folders import local_path
from sanakit.weights.find import read_tensors, said
from sanakit.weights.load import unwrapped

PARTS = {
    "x_embedder.proj": "patch_embed.proj",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "attention_y_norm": "caption_norm",
    "t_block.1": "time_embed.linear",
    "final_layer.linear": "proj_out",
    "final_layer.scale_shift_table": "scale_shift_table",
}
TIME = {"t_embedder.mlp.0": "timestep_embedder.linear_1", "t_embedder.mlp.2": "timestep_embedder.linear_2"}
GUIDANCE = {"cfg_embedder.mlp.0": "guidance_embedder.linear_1", "cfg_embedder.mlp.2": "guidance_embedder.linear_2"}
BLOCK = {
    "scale_shift_table": "scale_shift_table",
    "attn.proj": "attn1.to_out.0",
    "attn.q_norm": "attn1.norm_q",
    "attn.k_norm": "attn1.norm_k",
    "cross_attn.q_linear": "attn2.to_q",
    "cross_attn.proj": "attn2.to_out.0",
    "cross_attn.q_norm": "attn2.norm_q",
    "cross_attn.k_norm": "attn2.norm_k",
    "mlp.inverted_conv.conv": "ff.conv_inverted",
    "mlp.depth_conv.conv": "ff.conv_depth",
    "mlp.point_conv.conv": "ff.conv_point",
}
STACKED = {  # one native tensor, several of diffusers' in this order along the first axis
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
}
NULL = "y_embedder.y_embedding"
IGNORED = ("pos_embed", "logvar_linear.weight", "logvar_linear.bias")  # computed anew, or used in training alone
CROSS_HEADS = {1152: 16, 2240: 20}  # by width: published models; shapes do not tell
HEAD_DIM = 32  # of linear attention, every published model
CARD = {
    "vae": "hub:mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers",
    "text_encoder": "hub:Efficient-Large-Model/Sana_1600M_1024px_diffusers:text_encoder",
    "image_size": 1024,
    "flow_shift": 3.0,
}
INTERPOLATION = {2048: 1.0, 4096: 2.0}  # position embeddings exist at these image sizes only


def from_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Native tensors under diffusers' names; the null embedding is left out.
    Raises SK0602 for names it does not know."""
    names = PARTS | _time(any(name.startswith("cfg_embedder") for name in state))
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        prefix, rest = (f"transformer_blocks.{block[1]}.", block[2]) if block else ("", name)
        stem, suffix = _split(rest)
        known = BLOCK if block else names
        if block and stem in STACKED:
            parts = STACKED[stem]
            tensors |= {
                f"{prefix}{part}{suffix}": piece for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True)
            }
        elif stem in known:
            tensors[f"{prefix}{known[stem]}{suffix}"] = tensor
        elif name not in (NULL, *IGNORED):
            raise SanakitError("SK0602", f"tensor {name} {tuple(tensor.shape)} has no place in a Sana transformer")
    return tensors


def to_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_native`, for a core's state_dict. Position embeddings are left out: they are computed."""
    guided = any("guidance_embedder" in name for name in state)
    names = {theirs: ours for ours, theirs in (PARTS | _time(guided)).items()}
    blocks = {theirs: ours for ours, theirs in BLOCK.items()}
    stacked = {part: native for native, parts in STACKED.items() for part in parts}
    pieces: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name)
        prefix, rest = (f"blocks.{block[1]}.", block[2]) if block else ("", name)
        stem, suffix = _split(rest)
        if block and stem in stacked:  # a state_dict lists q, k, v in this order
            pieces.setdefault(f"{prefix}{stacked[stem]}{suffix}", []).append(tensor)
        elif name != "patch_embed.pos_embed":
            pieces[f"{prefix}{(blocks if block else names)[stem]}{suffix}"] = [tensor]
    return {name: torch.cat(tensors) if len(tensors) > 1 else tensors[0] for name, tensors in pieces.items()}


def _time(guided: bool) -> dict[str, str]:
    """Sprint's combined embedding sits one level higher than AdaLayerNormSingle's."""
    if guided:
        return {ours: f"time_embed.{theirs}" for ours, theirs in (TIME | GUIDANCE).items()}
    return {ours: f"time_embed.emb.{theirs}" for ours, theirs in TIME.items()}


def _split(name: str) -> tuple[str, str]:
    for suffix in (".weight", ".bias"):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def infer_config(state: dict[str, Tensor], image_size: int) -> dict[str, Any]:
    """Configuration of the core from native shapes. Raises SK0602 where a tensor is missing."""
    try:
        width, in_channels, patch, _ = state["x_embedder.proj.weight"].shape
        head, caption = state["final_layer.linear.weight"], state["y_embedder.y_proj.fc1.weight"]
        inverted = state["blocks.0.mlp.inverted_conv.conv.weight"]
    except KeyError as error:
        raise SanakitError("SK0602", f"the checkpoint has no tensor {error.args[0]}") from error
    heads = CROSS_HEADS.get(width)
    guided = "cfg_embedder.mlp.0.weight" in state
    return {
        "in_channels": in_channels,
        "out_channels": head.shape[0] // patch**2,
        "patch_size": patch,
        "num_attention_heads": width // HEAD_DIM,
        "attention_head_dim": HEAD_DIM,
        "num_layers": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        "num_cross_attention_heads": heads,
        "cross_attention_head_dim": width // heads if heads else None,
        "cross_attention_dim": width,
        "caption_channels": caption.shape[1],
        "mlp_ratio": inverted.shape[0] / 2 / width,
        "attention_bias": "blocks.0.attn.qkv.bias" in state,
        "sample_size": image_size // 32,
        "interpolation_scale": INTERPOLATION.get(image_size),
        "guidance_embeds": guided,
        "qk_norm": "rms_norm_across_heads" if "blocks.0.attn.q_norm.weight" in state else None,
    }


def read_native(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors`, or of a `.pth` with `weights_only`: nothing else in it is built. Names are without
    what torch.compile, FSDP and DataParallel add. Raises SK0602, SK0121 (a Git LFS pointer) or SK0122 (cut short)."""
    refuse_pointer(path)
    if path.suffix == ".safetensors":
        return plain_names(path, read_tensors(path))
    if is_cut_archive(path):
        raise SanakitError("SK0122", f"{path} ({path.stat().st_size:,} bytes) is an archive whose end is missing")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader and unpickler raise many types; none may fall back to a full unpickle
        raise SanakitError("SK0602", f"{path}: {said(error)}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SanakitError("SK0602", f"{path} holds {type(content).__name__}, expected tensors by name")
    return plain_names(path, state)


def plain_names(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Raises SK0123 where two tensors would get one name."""
    plain = {unwrapped(name): tensor for name, tensor in state.items()}
    if len(plain) < len(state):
        raise SanakitError("SK0123", f"{path}: two tensors have one name once torch's prefixes are taken off")
    return plain


def is_cut_archive(path: Path) -> bool:
    """Whether a file begins as a zip archive, as torch.save writes it, and has no end."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"PK" and not zipfile.is_zipfile(path)
    except OSError:
        return False


def build_native(state: dict[str, Tensor], card: dict[str, Any]) -> SanaTransformer2DModel:
    """A core in fp32 from native tensors; card: `image_size`, and `config` to override what shapes say.
    Raises SK0602."""
    config = infer_config(state, card["image_size"]) | card.get("config", {})
    if config["num_cross_attention_heads"] is None:
        width = config["cross_attention_dim"]
        raise SanakitError(
            "SK0602",
            f"width {width} is none of {', '.join(map(str, CROSS_HEADS))}, so its cross-attention heads are not known",
            fix='State {"config": {"num_cross_attention_heads": H, "cross_attention_head_dim": D}} in the .json '
            "beside it.",
        )
    try:
        core = SanaTransformer2DModel(**config)
    except TypeError as error:
        raise SanakitError("SK0602", f"config: {error}") from error
    tensors = {name: tensor.float() for name, tensor in from_native(state).items()}
    expected = {name: tensor.shape for name, tensor in core.state_dict().items() if name != "patch_embed.pos_embed"}
    for name in expected.keys() | tensors.keys():
        there, here = expected.get(name), tensors[name].shape if name in tensors else None
        if there != here:
            raise SanakitError(
                "SK0602", f"{name} is {here and tuple(here)}, the config builds {there and tuple(there)}"
            )
    core.load_state_dict(tensors, strict=False)
    return fold_guidance(core) if config["guidance_embeds"] else core


def converted(path: Path, cache: Path, *, allow_pickle: bool) -> Path:
    """A base folder (core, card.json, null embedding) made from a native file, under the hash of file and statement.

    Converted once, a pickle with leave; later calls read what was converted and need none. Raises SK0601 without leave.
    """
    refuse_pointer(path)
    if path.suffix not in (".safetensors", *PICKLES):
        raise SanakitError("SK0106", f"{path} is no checkpoint: expected a .safetensors file or a folder")
    statement = path.with_suffix(".json")
    digest = hashlib.sha256(statement.read_bytes() if statement.is_file() else b"")
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    final = cache / f"native-{digest.hexdigest()[:20]}"
    if (final / "card.json").is_file():
        return final
    if not allow_pickle and path.suffix != ".safetensors":
        raise SanakitError("SK0601", f"{path} is a pickle")
    card = CARD | _stated(statement) | {"native": {"file": path.name, "sha256": digest.hexdigest()}}
    state = read_native(path)
    core = build_native(state, card)
    aside = cache / f".{final.name}-{uuid.uuid4().hex}"
    core.save_pretrained(aside)
    if NULL in state:
        save_file({"embeds": state[NULL].float().contiguous()}, aside / "null_embedding.safetensors")
        card["null_embedding"] = f"kept from the checkpoint, {tuple(state[NULL].shape)}"
    card.pop("config", None)
    (aside / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    return final


def convert_base(name: str, cache: Path) -> None:
    """The permission to unpickle: convert a base that is named as a native file, `path:FILE`;
    any other name is left alone."""
    scheme, _, rest = name.partition(":")
    path = local_path(rest)
    if scheme == "path" and path.is_file():
        converted(path, cache, allow_pickle=True)


def _stated(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        unknown = sorted(values.keys() - CARD.keys() - {"config"})
    except (OSError, ValueError, AttributeError) as error:
        raise SanakitError("SK0602", f"{path}: {error}") from error
    if unknown:
        raise SanakitError("SK0602", f"{path}: unknown key {unknown[0]!r}; known: {', '.join(CARD)}, config")
    return values
