"""A model from a component folder by its library, under the file and tensor names that the library expects; what does
not fit is said once, with both sides' numbers."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sanakit.errors import SanakitError
from sanakit.weights.find import WeightFiles, find_weights, read_header, said

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # torch puts them anywhere in a name
DATA_PARALLEL = "module."  # at the beginning of every name

Read = Callable[[Path], tuple[Any, dict[str, Any]]]
Rename = Callable[[str], str]


def load_model(
    folder: Path,
    stem: str,
    read: Read,
    *,
    unused: tuple[str, ...] = (),
    strict: bool = True,
    quantised: bool = False,
) -> Any:
    """A model whose every tensor comes from the folder's weights.

    read: a library's `from_pretrained` of a folder, with its report of missing, unexpected and mismatched names.
    unused: beginnings of names that may be missing. strict: nothing may be left over either. quantised: `read` reads
    quantised weights. Names that torch.compile,
    FSDP or DataParallel have changed are restored, and a prefix that all tensors of the model share is taken off.
    Raises what `find_weights` raises, SK0107 for tensors that do not fit, SK0123 where two prefixes fit.
    """
    files = find_weights(folder, stem, quantised=quantised)
    rename = unwrapped if any(unwrapped(name) != name for name in files.shapes) else None
    model, report = _read(files, stem, rename, read)
    missing = [key for key in report.get("missing_keys", ()) if not key.startswith(unused)]
    names = {rename(name) if rename else name for name in files.shapes}
    if prefix := _prefix(folder, missing, names):

        def stripped(name: str) -> str:
            return (rename(name) if rename else name).removeprefix(prefix)

        model, report = _read(files, stem, stripped, read)
        missing = [key for key in report.get("missing_keys", ()) if not key.startswith(unused)]
        # what lies outside the prefix belongs to another model of the file
        report["unexpected_keys"] = [key for key in report.get("unexpected_keys", ()) if key not in names]
    if problem := _misfits(missing, report, strict):
        raise SanakitError("SK0107", f"{folder}: {problem}")
    return model


def _read(
    files: WeightFiles,
    stem: str,
    rename: Rename | None,
    read: Read,
) -> tuple[Any, dict[str, Any]]:
    with as_expected(files, stem, rename) as folder, quiet():
        try:
            model, report = read(folder)
        except (
            OSError,
            ValueError,
            RuntimeError,
            LookupError,
            TypeError,
            AttributeError,
            ImportError,
            SafetensorError,
        ) as error:
            text = said(error).replace(str(folder), str(files.folder))
            raise SanakitError("SK0107", f"{files.folder}: {text}") from error
    config: Any = getattr(model, "config", None)
    if folder != files.folder and str(getattr(config, "_name_or_path", "")) == str(folder):
        if hasattr(model, "register_to_config"):
            model.register_to_config(_name_or_path=str(files.folder))
        else:
            config._name_or_path = str(files.folder)
    return model, dict(report)


def unwrapped(name: str) -> str:
    """A tensor's name without what torch's wrappers add;
    no model of diffusers or transformers has such a name itself."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    while name.startswith(DATA_PARALLEL):
        name = name.removeprefix(DATA_PARALLEL)
    return name


def _prefix(folder: Path, missing: Sequence[str], names: set[str]) -> str:
    """What stands before every missing tensor's name in the weights; empty where nothing does.
    Raises SK0123 for two."""
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
def as_expected(files: WeightFiles, stem: str, rename: Rename | None = None) -> Iterator[Path]:
    """A folder with the weights under `stem`, without a variant, indexed, their tensors renamed: the folder itself
    where it is so already, else a temporary one that links to its files. Only a renamed file is copied."""
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
        total = len(files.files)
        weight_map: dict[str, str] = {}
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


def rename_tensors(source: Path, target: Path, rename: Rename) -> None:
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
