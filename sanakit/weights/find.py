"""The weight files of a component folder, found and checked by their headers before a library reads them.

A library reports a Git LFS pointer, a cut shard and a renamed tensor alike, as tensors that do not fit. The headers of
safetensors files tell them apart before a single weight is read. Format: https://github.com/huggingface/safetensors.
"""

import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sanakit.errors import SanakitError
from sanakit.files import read_config, refuse_adapter, refuse_pointer, refuse_quantised, weightless

DIFFUSERS, TRANSFORMERS, OPEN_CLIP = "diffusion_pytorch_model", "model", "open_clip_model"  # stems of weight files
PREFERRED = ("", "fp32", "bf16", "fp16")  # variants, the plain file first; then any other by name
NOT_WEIGHTS = (
    "adapter_model",
    "pytorch_lora_weights",
    "null_embedding",
    "interface_layers",
)  # stems beside a model's own
ADAPTED = (".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".base_layer.")  # parts of tensor names
QUANTISED = (
    ".qweight",
    ".qzeros",
    ".SCB",
    ".absmax",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
)  # endings
SMALL_FLOATS = ("F8_", "F6_", "F4")  # beginnings of types: their values mean nothing without a scale
BYTES = ("I8", "U8")  # types of quantised matrices; masks and other buffers may have them
LONGEST = 300  # characters of a library's own message
NAME = re.compile(
    r"(?P<stem>[^.]+?)(\.(?P<variant>\w+))??(-(?P<number>\d+)-of-(?P<count>\d+))?(\.(?P<legacy>\w+))?\.safetensors"
)
INDEX = re.compile(r"(?P<stem>[^.]+)(\.(?P<variant>\w+))?\.safetensors\.index(\.(?P<legacy>\w+))?\.json")


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """One complete set of weights. shapes: of every tensor by name. indexed: an index lies where libraries search."""

    folder: Path
    stem: str
    variant: str
    files: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    indexed: bool

    @property
    def label(self) -> str:
        return f"{self.stem}{f'.{self.variant}' if self.variant else ''}.safetensors"


def find_weights(folder: Path, stem: str, *, quantised: bool = False) -> WeightFiles:
    """The weights that a folder holds under `stem`: the plain ones, else a variant, else the only ones of another stem.

    quantised: the caller reads quantised ones.
    Raises SK0111 (none), SK0120 (quantised), SK0121 (a Git LFS pointer), SK0122 (a shard missing or cut), SK0123
    (several models, none of which is named `stem`) or SK0125 (a low-rank adapter).
    """
    refuse_adapter(folder)
    groups = _groups(folder)
    candidates = {key: files for key, files in groups.items() if key[0] == stem} or groups
    if not candidates:
        raise weightless(folder)
    if len({key[0] for key in candidates}) > 1:
        names = ", ".join(sorted({f"{key[0]}.safetensors" for key in candidates}))
        raise SanakitError(
            "SK0123",
            f"{folder} holds {names}, none of them {stem}.safetensors",
            cause="Several models lie in one folder, and none has the name that its library reads.",
            fix=f"Keep one of them, as {stem}.safetensors.",
        )
    ordered = sorted(candidates, key=lambda key: (_rank(key[1]), key[1]))
    begun = [
        key for key in ordered if len(_absent(candidates[key])) < len(candidates[key])
    ]  # an index alone promises files, no more
    key = begun[0] if begun else ordered[0]
    if missing := _absent(candidates[key]):
        there = len(candidates[key]) - len(missing)
        raise SanakitError(
            "SK0122", f"{folder}: {there} of {len(candidates[key])} weight files are there, no {missing[0].name}"
        )
    entries = {name: entry for file in candidates[key] for name, entry in read_entries(file).items()}
    shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    if not quantised:
        _refuse_quantised(folder, entries)
    if adapted := next((name for name in shapes if any(part in name for part in ADAPTED)), None):
        raise SanakitError("SK0125", f"{folder}: an adapter is among the weights, a tensor is named {adapted}")
    index = folder / f"{key[0]}.safetensors.index.json"
    return WeightFiles(
        folder=folder,
        stem=key[0],
        variant=key[1],
        files=tuple(candidates[key]),
        shapes=shapes,
        indexed=len(candidates[key]) == 1 or (not key[1] and index.is_file()),
    )


def _refuse_quantised(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Raises SK0120 where config.json, the name of a tensor or its type says that weights are quantised."""
    config = folder / "config.json"
    refuse_quantised(folder, read_config(folder) if config.is_file() else {})
    if packed := next((name for name in entries if name.endswith(QUANTISED)), None):
        raise SanakitError("SK0120", f"{folder} holds quantised weights: a tensor is named {packed}")
    if small := next((name for name, entry in entries.items() if _is_quantised(name, entry)), None):
        raise SanakitError("SK0120", f"{folder} holds quantised weights: {small} is of type {entries[small]['dtype']}")


def _groups(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """Files of every (stem, variant): what indices and shard numbers promise, whether it is there or not."""
    promised: dict[tuple[str, str], set[str]] = {}
    single = set()
    for path in sorted(folder.glob("*.safetensors")):
        match = NAME.fullmatch(path.name)
        stem, variant = (match["stem"], match["variant"] or match["legacy"] or "") if match else (path.stem, "")
        if stem in NOT_WEIGHTS:
            continue
        names = promised.setdefault((stem, variant), set())
        if match and match["count"]:
            names |= {_numbered(match, number) for number in range(1, int(match["count"]) + 1)}
        else:
            names |= {path.name}
            single.add((stem, variant))
    for path in sorted(folder.glob("*.safetensors.index*.json")):
        match = INDEX.fullmatch(path.name)
        key = (match["stem"], match["variant"] or match["legacy"] or "") if match else None
        if key is not None and key not in single and key[0] not in NOT_WEIGHTS:
            promised[key] = _listed(path) or promised.get(key, set())
    groups = {}
    for key, names in promised.items():
        kept = sorted(
            name for name in names if key not in single or "-of-" not in name
        )  # one whole file goes before shards
        if kept:
            groups[key] = [folder / name for name in kept]
    return groups


def _numbered(match: re.Match[str], number: int) -> str:
    """The name of another shard of the same set."""
    width = len(match["number"])
    return match.string[: match.start("number")] + str(number).zfill(width) + match.string[match.end("number") :]


def _listed(index: Path) -> set[str]:
    """Names of the shards that an index lists. Raises SK0121 or SK0122 for an index that cannot be read."""
    refuse_pointer(index)
    try:
        names = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SanakitError("SK0122", f"{index} is no index of weights: {type(error).__name__}: {error}") from error
    if outside := sorted(name for name in names if Path(name).name != name):
        raise SanakitError("SK0122", f"{index} names {outside[0]}, outside its folder")
    return names


def _rank(variant: str) -> int:
    return PREFERRED.index(variant) if variant in PREFERRED else len(PREFERRED)


def _absent(files: Sequence[Path]) -> list[Path]:
    return [path for path in files if not path.is_file()]


def _is_quantised(name: str, entry: dict[str, Any]) -> bool:
    """Whether a tensor is a matrix in 8 bits or fewer, which a library would read as if it had no scale."""
    dtype = str(entry.get("dtype"))
    is_matrix = name.endswith("weight") and len(entry["shape"]) > 1
    return dtype.startswith(SMALL_FLOATS) or (dtype in BYTES and is_matrix)


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a safetensors file, by name. Raises as `read_entries`."""
    return {name: tuple(entry["shape"]) for name, entry in read_entries(path).items()}


def read_entries(path: Path) -> dict[str, dict[str, Any]]:
    """dtype, shape and data_offsets of every tensor of a safetensors file. Raises SK0121 for a Git LFS pointer, SK0122
    for a file that is cut or damaged, with the bytes that it has and those that its header asks for."""
    refuse_pointer(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            header = json.loads(file.read(length)) if 8 + length <= size else None
    except OSError as error:
        raise SanakitError("SK0122", f"{path}: {error}") from error
    except ValueError:
        header = None
    try:
        if header is None or not all(isinstance(e["shape"], list) for n, e in header.items() if n != "__metadata__"):
            raise ValueError
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        needed = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SanakitError("SK0122", f"{path} ({size:,} bytes) has no safetensors header that can be read") from error
    if size != needed:
        raise SanakitError("SK0122", f"{path} has {size:,} bytes, its header describes {needed:,}")
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors file, by name. Raises SK0107, SK0121 or SK0122."""
    if not path.is_file():
        raise SanakitError("SK0107", f"{path} does not exist")
    read_header(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SanakitError("SK0107", f"{path}: {said(error)}") from error


def said(error: BaseException) -> str:
    """What another library says, at most LONGEST characters: the line about a shape where there is one,
    else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = next((line for line in lines if "size mismatch" in line), lines[0])
    return textwrap.shorten(line, LONGEST, placeholder=" ...") if " " in line else line[:LONGEST]
