"""Errors that are not of the catalogue: whose code raised them, said in one line, the whole traceback in a file."""

import contextvars
import datetime
import errno
import importlib.metadata
import os
import platform
import re
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, TypeVar

from sanakit import __version__
from sanakit.errors import SanakitError, lacks_memory
from sanakit.files import without_secrets

OWN = "sanakit"
UNKNOWN = "unknown"  # the origin of a plugin whose metadata do not say
LONGEST = 300  # characters of an error's message in one line
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "safetensors", "accelerate", "pydantic", "typer")
# what the system says when a file or folder cannot be used; any other OSError is a defect
UNUSABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}
UNUSABLE |= {errno.EEXIST, errno.ENAMETOOLONG}
# what torch.distributed raises where another rank is gone: its own types, and gloo's words
NETWORK = ("DistBackendError", "DistNetworkError", "DistStoreError")
PEER = re.compile(r"connection (closed|reset) by peer|gloo.*(connect|pair|timed? ?out|broken pipe)", re.IGNORECASE)
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes of a signal: no error
T = TypeVar("T")
_work: contextvars.ContextVar[tuple[str, int, int]] = contextvars.ContextVar("work under way", default=("", 0, 0))
_advice: contextvars.ContextVar[Callable[[str], str | None]] = contextvars.ContextVar(
    "what makes it fit", default=lambda label: None
)
_folder: contextvars.ContextVar[Path | None] = contextvars.ContextVar("folder of tracebacks", default=None)


@contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Tracebacks of errors within are written to `folder`, a run folder; one that goes on from here is written too."""
    token = _folder.set(folder)
    try:
        yield
    except BaseException as error:
        if unexpected(error):
            write_traceback(error)
        raise
    finally:
        _folder.reset(token)


def unexpected(error: BaseException) -> bool:
    """Neither an error of the catalogue, nor one of the environment, nor a signal, nor the exit of a command."""
    return not (stops(error) or isinstance(error, SanakitError) or of_environment(error))


def stops(error: BaseException) -> bool:
    """A signal, a reader that is gone, or the end of a command with its exit code. Panics of Rust extensions
    (tokenizers, safetensors) are no `Exception` and do not count; nor does a library that calls `sys.exit`."""
    if isinstance(error, SanakitError):
        return False
    if nobody_reads(error) or (isinstance(error, SystemExit) and error.code in (None, 0, *STOPPED)):
        return True
    return isinstance(error, KeyboardInterrupt | GeneratorExit) or hasattr(error, "exit_code")


def nobody_reads(error: BaseException) -> bool:
    """Whether an error says that the reader of standard output or error is gone. rich and typer make an exit with code
    1 of it, which would say that a gate failed. Another broken pipe is an error like any."""
    if isinstance(error, SystemExit):
        return isinstance(error.__context__, BrokenPipeError)
    return isinstance(error, BrokenPipeError) and any(_closed(stream) for stream in (sys.__stdout__, sys.__stderr__))


def _closed(stream: TextIO | None) -> bool:
    """Whether the other end of a pipe is closed; taken for granted where the system cannot tell."""
    try:
        if stream is None or not hasattr(select, "poll"):
            return stream is not None
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False


def of_environment(error: BaseException) -> SanakitError | None:
    """What the machine refuses, as an error of the catalogue: disk, permissions, memory, a package, another rank that
    is gone. None for the rest."""
    said = " ".join(str(error).split())[:LONGEST]
    if isinstance(error, OSError) and error.errno in UNUSABLE:
        return SanakitError("SK0903", said, cause="The system refuses to read or write there.")
    if lacks_memory(error):
        return no_memory(error)
    if type(error).__name__ in NETWORK or (isinstance(error, RuntimeError) and PEER.search(said)):
        return SanakitError("SK0516", f"the connection to another rank broke: {said}")
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != OWN:
        module = error.name.partition(".")[0]
        return SanakitError("SK0901", said, fix=f"Install the package that provides the module {module}.")
    return None


def no_memory(error: BaseException) -> SanakitError:
    """SK0119: what was being done, what the system said, and what would make it fit."""
    said = " ".join(str(error).split())[:LONGEST] or type(error).__name__
    label, done, total = _work.get()
    doing = f"while {label} ({done:,} of {total:,}): " if label else ""
    return SanakitError("SK0119", doing + said, fix=_advice.get()(label))


def note_work(label: str, done: int, total: int) -> None:
    """What is being done, for the message of an error."""
    _work.set((label, done, total))


@contextmanager
def memory_advice(advise: Callable[[str], str | None]) -> Iterator[None]:
    """Within, an error for want of memory says what `advise` makes of the work under way. One that a refusal wraps (a
    file that could not be read because memory was full) is told as what it is."""
    token = _advice.set(advise)
    try:
        yield
    except SanakitError as error:
        cause = error.__cause__
        while cause is not None and not lacks_memory(cause):
            cause = cause.__cause__
        if cause is None:
            raise
        raise no_memory(cause) from error
    except Exception as error:
        if not lacks_memory(error):
            raise
        raise no_memory(error) from error
    finally:
        _advice.reset(token)


def describe(error: BaseException) -> str:
    """One line: type, message, and the place in sanakit or a plugin that the error went through last."""
    said = " ".join(str(error).split())
    said = said if len(said) <= LONGEST else said[: LONGEST - 3] + "..."
    told = f"{type(error).__name__}: {said}" if said else type(error).__name__
    known = plugin_modules()
    places = [f for f in _frames(error.__traceback__) if _module(f).partition(".")[0] == OWN or _owner(f, known)]
    if places:
        package = ["__init__"] if "__path__" in places[-1].f_globals else []
        name = Path(*_module(places[-1]).split("."), *package).with_suffix(".py")
        lines = {id(f): line for f, line in traceback.walk_tb(error.__traceback__)}
        told += f" ({name.as_posix()}, line {lines[id(places[-1])]})"
    return told


def plugin_of(error: BaseException) -> str | None:
    """The distribution of the innermost plugin whose code, or whose object's method, the error went through."""
    known = plugin_modules()
    frames = _frames(error.__traceback__)
    owners = [owner for frame in reversed(frames) if (owner := _owner(frame, known))]
    return owners[0] if owners else None


def plugin_modules() -> dict[str, str]:
    """Modules named by entry points of sanakit's groups, and their packages: the distribution of each."""
    modules: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        try:
            points = [point for point in distribution.entry_points if point.group.startswith(f"{OWN}.")]
            name = distribution.name or UNKNOWN
        except Exception:  # whatever is wrong with the metadata of a package, the error at hand is what is told
            continue
        for point in points:
            module = point.value.partition(":")[0].strip()
            modules |= {module: name, module.partition(".")[0]: name}
    modules.pop(OWN, None)
    return modules


def write_traceback(error: BaseException) -> Path | None:
    """The file that holds the traceback: in the run folder, else in the cache, else in the system's temporary folder.

    Written once for an error. None where none of them can be written.
    """
    known: Path | None = getattr(error, "traceback_file", None)
    if known is not None:
        return known
    text = _report(error)
    for folder in (_folder.get(), *_fallbacks()):
        if folder is None:
            continue
        try:
            if folder != _folder.get():
                folder.mkdir(parents=True, exist_ok=True)
            path = _new_file(folder)
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        error.traceback_file = path  # type: ignore[attr-defined]
        return path
    return None


def guarded(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """What `work` returns, or the error that it raised, whatever it is; a signal goes on."""
    try:
        return work(), None
    except BaseException as error:
        if stops(error):
            raise
        return None, error


def told(error: BaseException) -> str:
    """`describe`, and where the traceback lies."""
    path = write_traceback(error)
    return f"{describe(error)}; traceback: {path or 'could not be written'}"


def _frames(trace: TracebackType | None) -> list[Any]:
    return [frame for frame, _ in traceback.walk_tb(trace)]


def _module(frame: Any) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _owner(frame: Any, known: dict[str, str]) -> str:
    names = [_module(frame)]
    if "self" in frame.f_locals:
        names.append(str(type(frame.f_locals["self"]).__module__))
    for name in names:
        for candidate in (name, name.partition(".")[0]):
            if candidate in known:
                return known[candidate]
    return ""


def _report(error: BaseException) -> str:
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    head = [
        f"sanakit {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"command: {' '.join(without_secrets(word) for word in sys.argv)}",
        f"packages: {', '.join(versions)}",
    ]
    trace = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    return "\n".join([*head, "", *trace.format()])


def _fallbacks() -> list[Path]:
    """The cache, and the system's temporary folder; neither is made before it is needed."""
    named = os.environ.get("SANAKIT_CACHE")
    cache = (
        Path(named).expanduser() if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / OWN
    )
    return [cache / "tracebacks", Path(tempfile.gettempdir())]


def _new_file(folder: Path) -> Path:
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    stem = f"traceback-{stamp}-{os.getpid()}"
    return next(path for n in range(10_000) if not (path := folder / f"{stem}{f'-{n}' if n else ''}.txt").exists())
