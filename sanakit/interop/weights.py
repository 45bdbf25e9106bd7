"""Weight files of a component folder: found, checked by their headers, and handed to a library under the names that it expects.

A library reports a Git LFS pointer, a cut shard and a renamed tensor alike, as tensors that do not fit. The headers of
safetensors files tell them apart before a single weight is read. Format: https://github.com/huggingface/safetensors.
"""

import json
import re
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sanakit.errors import SanakitError
from sanakit.interop.files import read_config, refuse_adapter, refuse_pointer, refuse_quantised, weightless

DIFFUSERS, TRANSFORMERS, OPEN_CLIP = "diffusion_pytorch_model", "model", "open_clip_model"  # stems of weight files
PREFERRED = ("", "fp32", "bf16", "fp16")  # variants, the plain file first; then any other by name
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # torch puts them anywhere in a name
DATA_PARALLEL = "module."  # at the beginning of every name
NOT_WEIGHTS = ("adapter_model", "pytorch_lora_weights", "null_embedding", "joints")  # stems beside a model's own
QUANTISED = (".qweight", ".qzeros", ".SCB", ".absmax")  # endings of tensor names
LONGEST = 300  # characters of a library's own message
NAME = re.compile(
    r"(?P<stem>[^.]+?)(\.(?P<variant>\w+))??(-(?P<number>\d+)-of-(?P<count>\d+))?(\.(?P<legacy>\w+))?\.safetensors"
)
INDEX = re.compile(r"(?P<stem>[^.]+)(\.(?P<variant>\w+))?\.safetensors\.index(\.(?P<legacy>\w+))?\.json")


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """One complete set of weights. shapes: of every tensor by name. indexed: an index lies where libraries look."""

    folder: Path
    stem: str
    variant: str
    files: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    indexed: bool

    @property
    def label(self) -> str:
        return f"{self.stem}{f'.{self.variant}' if self.variant else ''}.safetensors"


def find_weights(folder: Path, stem: str) -> WeightFiles:
    """The weights that a folder holds under `stem`: the plain ones, else a variant, else the only ones of another stem.

    Raises SK0111 (none), SK0120 (quantised), SK0121 (a Git LFS pointer), SK0122 (a shard missing or cut), SK0123 (several
    models, none of which is named `stem`) or SK0125 (a low-rank adapter).
    """
    refuse_adapter(folder)
    groups = _groups(folder)
    own = {key: files for key, files in groups.items() if key[0] == stem} or groups
    if not own:
        raise weightless(folder)
    if len({key[0] for key in own}) > 1:
        names = ", ".join(sorted({f"{key[0]}.safetensors" for key in own}))
        raise SanakitError(
            "SK0123",
            f"{folder} holds {names}, none of them {stem}.safetensors",
            cause="Several models lie in one folder, and none has the name that its library reads.",
            fix=f"Keep one of them, as {stem}.safetensors.",
        )
    ordered = sorted(own, key=lambda key: (_rank(key[1]), key[1]))
    complete = [key for key in ordered if not _absent(own[key])]
    key = complete[0] if complete else ordered[0]
    if missing := _absent(own[key]):
        there = len(own[key]) - len(missing)
        raise SanakitError(
            "SK0122", f"{folder}: {there} of {len(own[key])} weight files are there, no {missing[0].name}"
        )
    shapes = {name: shape for file in own[key] for name, shape in read_header(file).items()}
    config = folder / "config.json"
    refuse_quantised(folder, read_config(folder) if config.is_file() else {})
    if packed := next((name for name in shapes if name.endswith(QUANTISED)), None):
        raise SanakitError("SK0120", f"{folder} holds quantised weights: a tensor is named {packed}")
    index = folder / f"{key[0]}.safetensors.index.json"
    return WeightFiles(
        folder=folder,
        stem=key[0],
        variant=key[1],
        files=tuple(own[key]),
        shapes=shapes,
        indexed=len(own[key]) == 1 or (not key[1] and index.is_file()),
    )


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


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a safetensors file. Raises SK0121 for a Git LFS pointer, SK0122 for a file that is cut or
    damaged, with the bytes that it has and those that its header asks for."""
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
        if header is None:
            raise ValueError
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
        needed = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SanakitError("SK0122", f"{path} ({size:,} bytes) has no safetensors header that can be read") from error
    if size < needed:
        raise SanakitError("SK0122", f"{path} has {size:,} bytes, its header describes {needed:,}")
    return shapes


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors file, by name. Raises SK0107, SK0121 or SK0122."""
    if not path.is_file():
        raise SanakitError("SK0107", f"{path} does not exist")
    read_header(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SanakitError("SK0107", f"{path}: {said(error)}") from error


def load_model(
    folder: Path,
    stem: str,
    read: Callable[[Path], tuple[Any, dict[str, Any]]],
    *,
    unused: tuple[str, ...] = (),
    strict: bool = True,
) -> Any:
    """A model whose every tensor comes from the folder's weights.

    read: a library's `from_pretrained` of a folder, with its report of missing, unexpected and mismatched names. unused:
    beginnings of names that may be missing. strict: nothing may be left over either. Names that torch.compile, FSDP or
    DataParallel have changed are restored, and a prefix that all tensors of the model share is taken off.
    Raises what `find_weights` raises, SK0107 for tensors that do not fit, SK0123 where two prefixes fit.
    """
    files = find_weights(folder, stem)
    rename = unwrapped if any(unwrapped(name) != name for name in files.shapes) else None
    model, report = _read(files, stem, rename, read)
    missing = [key for key in report.get("missing_keys", ()) if not key.startswith(unused)]
    names = {rename(name) if rename else name for name in files.shapes}
    if prefix := _prefix(folder, missing, names):
        stripped = lambda name: (rename(name) if rename else name).removeprefix(prefix)
        model, report = _read(files, stem, stripped, read)
        missing = [key for key in report.get("missing_keys", ()) if not key.startswith(unused)]
        report["unexpected_keys"] = [key for key in report.get("unexpected_keys", ()) if key not in names]
    if problem := _misfits(missing, report, strict):
        raise SanakitError("SK0107", f"{folder}: {problem}")
    return model


def _read(
    files: WeightFiles,
    stem: str,
    rename: Callable[[str], str] | None,
    read: Callable[[Path], tuple[Any, dict[str, Any]]],
) -> tuple[Any, dict[str, Any]]:
    with as_expected(files, stem, rename) as folder, quiet():
        try:
            model, report = read(folder)
        except (
            OSError,
            ValueError,
            RuntimeError,
            KeyError,
            TypeError,
            AttributeError,
            ImportError,
            SafetensorError,
        ) as e:
            text = said(e).replace(str(folder), str(files.folder))
            raise SanakitError("SK0107", f"{files.folder}: {text}") from e
    config = getattr(model, "config", None)
    if folder != files.folder and str(getattr(config, "_name_or_path", "")) == str(folder):
        if hasattr(model, "register_to_config"):
            model.register_to_config(_name_or_path=str(files.folder))
        else:
            config._name_or_path = str(files.folder)
    return model, dict(report)


def unwrapped(name: str) -> str:
    """A tensor's name without what torch's wrappers add; no model of diffusers or transformers has such a name itself."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    while name.startswith(DATA_PARALLEL):
        name = name.removeprefix(DATA_PARALLEL)
    return name


def _prefix(folder: Path, missing: Sequence[str], names: set[str]) -> str:
    """What stands before every missing tensor's name in the weights; empty where nothing does. Raises SK0123 for two."""
    if not missing:
        return ""
    longest = max(missing, key=len)
    before = (name.removesuffix(longest) for name in names if name.endswith(f".{longest}"))
    fitting = sorted(p for p in before if all(p + key in names for key in missing))
    if len(fitting) > 1:
        raise SanakitError(
            "SK0123", f"{folder}: {len(missing)} tensors are there under each of {', '.join(fitting)} and not without"
        )
    return fitting[0] if fitting else ""


def _misfits(missing: Sequence[str], report: dict[str, Any], strict: bool) -> str:
    """Tensors that do not fit, counted, with the first of each kind; empty where all fit."""
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors of the config are not in the weights, first {sorted(missing)[0]}")
    if wrong := sorted(report.get("mismatched_keys", ()), key=str):
        parts.append(f"{len(wrong)} have another shape, first {_shapes(wrong[0])}")
    if strict and (extra := sorted(report.get("unexpected_keys", ()))):
        parts.append(f"{len(extra)} tensors of the weights are not in the config, first {extra[0]}")
    return "; ".join(parts)


def _shapes(entry: Any) -> str:
    if isinstance(entry, str):
        return entry
    name, there, here = entry
    return f"{name}: {tuple(there)} in the weights, {tuple(here)} by the config"


@contextmanager
def as_expected(files: WeightFiles, stem: str, rename: Callable[[str], str] | None = None) -> Iterator[Path]:
    """A folder with the weights under `stem`, without a variant, indexed, their tensors renamed: the folder itself where
    it is so already, else a temporary one that links to its files. Only a renamed file is copied."""
    plain = files.stem == stem and not files.variant and files.indexed
    if plain and rename is None:
        yield files.folder
        return
    if rename is not None and len({rename(name) for name in files.shapes}) < len(files.shapes):
        raise SanakitError("SK0123", f"{files.folder}: two tensors have one name once their prefix is taken off")
    with tempfile.TemporaryDirectory(prefix="sanakit-", ignore_cleanup_errors=True) as made:
        view = Path(made)
        for path in files.folder.iterdir():
            if path.is_file() and ".safetensors" not in path.name:
                link(path, view / path.name)
        total, weight_map = len(files.files), {}
        for number, path in enumerate(files.files, 1):
            name = f"{stem}.safetensors" if total == 1 else f"{stem}-{number:05}-of-{total:05}.safetensors"
            if rename is None:
                link(path, view / name)
            else:
                rename_tensors(path, view / name, rename)
            weight_map |= dict.fromkeys(read_header(view / name), name)
        if total > 1:
            index = {"metadata": {}, "weight_map": weight_map}
            (view / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        yield view


def link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.absolute())
    except OSError:  # a file system, or a Windows account, without symbolic links
        shutil.copyfile(source, target)


def rename_tensors(source: Path, target: Path, rename: Callable[[str], str]) -> None:
    """A safetensors file with other names; the tensors' bytes are copied as they are. Raises SK0903 on a full disk."""
    with source.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        renamed = {name if name == "__metadata__" else rename(name): entry for name, entry in header.items()}
        text = json.dumps(renamed, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        try:
            with target.open("wb") as out:
                out.write(len(text).to_bytes(8, "little") + text)
                shutil.copyfileobj(file, out, 1 << 24)
        except OSError as error:
            raise SanakitError(
                "SK0903", f"{source} has to be copied to rename its tensors: {error}", fix="Free space, or set TMPDIR."
            ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' own lists of tensor names: what does not fit is said once, in the error."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = [(lib, lib.get_verbosity()) for lib in (diffusers_logging, transformers_logging)]
    for lib, _ in before:
        lib.set_verbosity(lib.CRITICAL)
    try:
        yield
    finally:
        for lib, level in before:
            lib.set_verbosity(level)


def said(error: BaseException) -> str:
    """What another library says, at most LONGEST characters: the line about a shape where there is one, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = next((line for line in lines if "size mismatch" in line), lines[0])
    return textwrap.shorten(line, LONGEST, placeholder=" ...") if " " in line else line[:LONGEST]
