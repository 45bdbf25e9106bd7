"""What a `save_pretrained` folder may hold, a config.json and weights in safetensors; and where made files are kept."""

import errno
import json
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sanakit.errors import SanakitError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
OTHER_WEIGHTS = (".gguf", ".onnx", ".npz", ".pte", ".mlmodel")
POINTER = b"version https://git-lfs.github.com/spec/v1"
POINTER_SIZE = 1024  # a pointer has about 130 bytes
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors")


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """config.json of a component folder. Raises SK0106 when there is none to read, SK0121 for a Git LFS pointer, SK0125
    where a low-rank adapter lies in its place."""
    path = folder / name
    refuse_pointer(path)
    if name == "config.json" and not path.is_file():
        refuse_adapter(folder)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SanakitError("SK0106", f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise SanakitError("SK0106", f"{path} holds {type(config).__name__}, expected an object")
    return config


def is_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer: a few lines of text in the place of the real file."""
    try:
        if path.stat().st_size > POINTER_SIZE:
            return False
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def refuse_pointer(*paths: Path) -> None:
    """Raises SK0121 for the first path that is a Git LFS pointer."""
    for path in paths:
        if is_pointer(path):
            raise SanakitError(
                "SK0121",
                f"{path} is a Git LFS pointer of {path.stat().st_size} bytes, not the file itself",
                fix=f"git -C {shlex.quote(str(path.parent))} lfs pull",
            )


def weightless(folder: Path) -> SanakitError:
    """The refusal of a folder without safetensors weights, SK0111, which names the weights that it has."""
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (*PICKLES, *OTHER_WEIGHTS))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return SanakitError(
        "SK0111", f"{folder} holds {', '.join(names[:3]) or 'no weights'}{more}, expected *.safetensors"
    )


def refuse_adapter(folder: Path) -> None:
    """Raises SK0125 for a folder that holds a low-rank adapter, alone or beside weights."""
    adapter_files = [name for name in ADAPTER_FILES if (folder / name).is_file()]
    if not adapter_files:
        return
    alone = not any(p.name not in ADAPTER_FILES for p in folder.glob("*.safetensors"))
    base = ""
    if alone and (folder / ADAPTER_FILES[0]).is_file():
        named = read_config(folder, ADAPTER_FILES[0]).get("base_model_name_or_path")
        base = f", which was trained on {named}" if named else ""
    raise SanakitError(
        "SK0125",
        f"{folder} holds a low-rank adapter {'without the model' if alone else 'beside the weights'} "
        f"({adapter_files[0]}){base}",
        fix="Merge it first: peft's `AutoPeftModel.from_pretrained(DIR).merge_and_unload().save_pretrained(OUT)`, "
        "then name OUT."
        if alone
        else "Merge it into the weights with peft's `merge_and_unload`, "
        f"or, to read the model without it, move {adapter_files[0]} out of the folder.",
    )


def refuse_quantised(folder: Path, config: dict[str, Any]) -> None:
    """Raises SK0120 for a config.json, or a file beside it, that says the weights are quantised (GPTQ, AWQ, torchao
    ...)."""
    stated = config.get("quantization_config") or config.get("quantization")
    beside = next((n for n in ("quantize_config.json", "quant_config.json") if (folder / n).is_file()), None)
    if not stated and beside is None:
        return
    facts = stated if isinstance(stated, dict) else read_config(folder, beside) if beside else {}
    method = facts.get("quant_method") or facts.get("quant_type") or "no method named"
    if method == "gguf":  # safetensors of a model read from GGUF hold what was dequantised
        return
    bits = facts.get("bits") or facts.get("w_bit")
    where = "config.json" if stated else beside
    raise SanakitError(
        "SK0120", f"{folder} holds quantised weights: {where} says {method}{f', {bits} bits' if bits else ''}"
    )


def require_utf8(path: Path, source: str, code: str = "SK0104") -> Path:
    """Raises `code` for a path that is not UTF-8: safetensors files cannot be opened there, nor written. source: what
    named it."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        shown = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
        raise SanakitError(
            code,
            f"{source}: the path {shown} is not UTF-8",
            cause="A name in it was written in another encoding, such as Latin-1, "
            "and safetensors files cannot be opened there.",
            fix="Rename the folder, or name another one.",
        ) from error
    return path


def is_empty(name: str) -> bool:
    """Whether a text names nothing: blanks, or `path:`, `hub:` or `hf:` alone."""
    return name.partition("?")[0].strip() in ("", "path:", "hub:", "hf:")


def require_name(name: str, label: str) -> str:
    """The name. Raises SK0104 for one that is empty, which says what it was given as."""
    if is_empty(name):
        raise SanakitError(
            "SK0104",
            f"{label} is empty{f': {name!r}' if name.strip() else ''}",
            cause="A shell variable that is not set gives an empty text.",
            fix=f"Give {label} a value, or leave it out.",
        )
    return name


def cache_path() -> Path:
    """Where rendered images, latents, embeddings and converted weights are kept, whether it exists or not:
    SANAKIT_CACHE (`~` is the home folder), or the user's cache. Raises SK0128 where there is no home folder."""
    named = os.environ.get("SANAKIT_CACHE")
    try:
        return Path(named or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sanakit").expanduser()
    except RuntimeError as error:
        raise SanakitError("SK0128", f"SANAKIT_CACHE={named or ''}: {error}") from error


def cache_dir() -> Path:
    """`cache_path`, made where it does not exist. Raises SK0128 when it cannot be made or written."""
    path = require_utf8(cache_path(), "the cache folder", "SK0128")
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write in {path}")
    except OSError as error:
        source = "SANAKIT_CACHE" if os.environ.get("SANAKIT_CACHE") else "the user's cache"
        raise SanakitError("SK0128", f"{path} ({source}): {error.strerror or error}") from error
    return path


def try_writing(folder: Path) -> None:
    """Write and remove a small file where a folder is or will be made. Raises SK0903 before hours of work would be
    lost."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    probe = there / f".sanakit-{uuid.uuid4().hex}"
    try:
        if not there.is_dir():
            raise NotADirectoryError(f"{there} is no folder")
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise SanakitError("SK0903", f"{folder} cannot be written: {error.strerror or error}") from error


def without_secrets(address: str) -> str:
    """An address without user, password, query and fragment, as it may be stored and shown; a path as it is."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{re.split('[?#]', path, maxsplit=1)[0]}"


def hide_secrets(text: str, address: str) -> str:
    """A text without the user, password, query and fragment of an address, however it quotes them."""
    place, _, path = address.partition("://")[2].partition("/")
    secrets = [place.rpartition("@")[0], *re.split("[?#]", path)[1:]]
    for secret in sorted((secret for secret in secrets if secret), key=len, reverse=True):
        text = text.replace(secret, "...")
    return text


def file_to_write(path: Path, option: str = "") -> Path:
    """The file that a path leads to, links followed, whether it exists or not. Raises SK0104 where a folder, a FIFO or
    a device stands there. option: what named it."""
    target = Path(os.path.realpath(path))
    if not target.is_file() and (target.exists() or target.is_symlink()):
        kind = "a folder" if target.is_dir() else "no regular file"
        fix = "Name a file that is there, or one that is not there yet."
        raise SanakitError("SK0104", f"{option} {path} is {kind}, expected a file to write".lstrip(), fix=fix)
    return target


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A new place beside a file; what is written there takes the file's place, flushed to disk, where all goes well.
    Nothing stays behind where it does not. Raises SK0104 as `file_to_write`, and OSError."""
    target = file_to_write(path)
    temporary = target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex}")
    try:
        yield temporary
        flush(temporary)
        with suppress(OSError):  # a new file, or a file system without modes
            shutil.copymode(target, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_aside(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises OSError where the system refuses."""
    with aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def output(path: Path) -> Iterator[Path]:
    """As `aside`, for a file that a user has named: its folder is made. Raises SK0104 or SK0903."""
    try:
        file_to_write(path).parent.mkdir(parents=True, exist_ok=True)
        with aside(path) as temporary:
            yield temporary
    except OSError as error:
        raise SanakitError("SK0903", f"{path} cannot be written: {error.strerror or error}") from error


def flush(path: Path) -> None:
    """What the system still holds of a file or a folder goes to disk. Windows flushes what may be written, and opens no
    folder: there is nothing to do for one."""
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    except PermissionError:
        if is_folder:
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(path: Path, nbytes: int) -> None:
    """A new file of this many bytes, for which the disk has room. Linux reserves the room; macOS and Windows cannot, so
    there the free space is compared. Raises OSError."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, nbytes)
        elif shutil.disk_usage(path.parent).free < nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
