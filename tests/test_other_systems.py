"""What macOS and Windows lack is taken away, and the jobs still run; neither system itself has been tried."""

import ast
import builtins
import errno
import fcntl
import importlib.util
import os
import platform
import select
import shutil
import signal
import sys
import types
from pathlib import Path

import pytest

import sanakit
from sanakit import distributed, doctor, inventory, locks
from sanakit.config import make_config
from sanakit.errors import SanakitError
from sanakit.swap import stages as engine

PACKAGE = Path(sanakit.__file__).parent
LINUX_ALONE = ("posix_fallocate", "sched_getaffinity")  # of os
NOT_ON_WINDOWS = ("pread", "sysconf", "getuid", "fork", "mkfifo", "getloadavg", "killpg", "setsid", "uname")
NO_SUCH_FLAGS = ("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_DIRECT")
MODULES = ("resource", "fcntl", "pwd", "grp", "termios")


def fresh(module):
    """The module executed anew, beside the one that is imported."""
    spec = importlib.util.spec_from_file_location("fresh_" + module.__name__.replace(".", "_"), module.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    return again


def test_a_system_without_sigusr1_and_resource_still_works(monkeypatch):
    assert distributed.StopRequest.SIGNALS == (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    monkeypatch.delattr(signal, "SIGUSR1")
    windows = fresh(distributed)
    assert windows.StopRequest.SIGNALS == (signal.SIGTERM, signal.SIGINT)
    with windows.STOP.installed():
        assert signal.getsignal(signal.SIGTERM) is windows.STOP
    import psutil

    process = types.SimpleNamespace(memory_info=lambda: types.SimpleNamespace(peak_wset=5e8))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "resource" else find(name))
    assert windows.peak_megabytes() == 500


def test_memory_is_counted_in_the_unit_of_the_system(monkeypatch):
    import resource

    here = distributed.peak_megabytes()
    assert 50 < here < 100_000
    usage = types.SimpleNamespace(ru_maxrss=300e6)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert distributed.peak_megabytes() == 300


def test_what_one_system_has_alone_is_used_under_a_guard():
    """By name: modules behind `try`, functions behind `hasattr` or behind a module that the system lacks as well."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        mentioned = any(name in text for name in (*LINUX_ALONE, *NOT_ON_WINDOWS, *NO_SUCH_FLAGS))
        for node in ast.walk(ast.parse(text)) if mentioned else ():
            named = node.attr if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) else ""
            if named in (*LINUX_ALONE, *NOT_ON_WINDOWS, *NO_SUCH_FLAGS) and node.value.id == "os":
                guarded = f'hasattr(os, "{named}")' in text or "if fcntl is None:" in text or "AttributeError" in text
                assert guarded, f"{path}: os.{named}"
        for name in MODULES:
            assert f"\nimport {name}\n" not in text, path
        assert "signal.SIGUSR1" not in text, path


@pytest.mark.parametrize("module", [locks, inventory], ids=lambda module: module.__name__)
def test_modules_are_imported_where_a_system_lacks_theirs(module, monkeypatch):
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    assert fresh(module).fcntl is None


def act_like_macos(monkeypatch):
    for name in LINUX_ALONE:
        monkeypatch.delattr(os, name)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")


def act_like_windows(monkeypatch):
    """No POSIX call, no lock, no symbolic link; a file is flushed by who may write it, and a folder is not opened."""
    act_like_macos(monkeypatch)
    for name in (*NOT_ON_WINDOWS, *NO_SUCH_FLAGS):
        monkeypatch.delattr(os, name)
    monkeypatch.delattr(select, "poll")
    for module in (locks, inventory):
        monkeypatch.setattr(module, "fcntl", None)
    opened, flushed = os.open, os.fsync

    def refuse_folders(path, flags, *mode, **options):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *mode, **options)

    def flush_written(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed(descriptor)

    def refuse_link(*given, **options):
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(os, "open", refuse_folders)
    monkeypatch.setattr(os, "fsync", flush_written)
    monkeypatch.setattr(os, "symlink", refuse_link)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)  # folders are removed by their paths
    monkeypatch.setattr(builtins, "__import__", importer_without(MODULES))
    monkeypatch.setattr(platform, "system", lambda: "Windows")


def importer_without(names):
    """`import` that does not find these modules when sanakit asks; the libraries below have a build for each system."""
    usual = builtins.__import__

    def find(name, scope=None, *more):
        if name in names and str((scope or {}).get("__name__", "")).startswith("sanakit"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return usual(name, scope, *more)

    return find


@pytest.mark.parametrize("act", [act_like_macos, act_like_windows], ids=["macOS", "Windows"])
def test_a_training_saves_and_goes_on_where_linux_calls_are_missing(act, small_world, tmp_path, monkeypatch):
    act(monkeypatch)
    monkeypatch.setattr(engine, "peak_megabytes", lambda: 500.0)  # tested above
    world = small_world | {"vae": {"name": "pca-f8c4"}, "smoke": {"held_out": 16}}
    for steps in (1, 2):
        world["train"] = {"max_steps": steps, "batch_size": 4, "checkpoint_every": 1, "strategy": "naive", "warmup": 1}
        swap = engine.prepare(make_config(world), tmp_path / "run", lambda *_: None, stages=["full"])
        record = engine.run_stages(swap, ["full"])
    assert record["stages"]["full"]["steps"] == 2
    assert (tmp_path / "run" / "checkpoints" / "LATEST").read_text() == "step-00000002"
    row = doctor._system()
    assert row["check"] == "system" and row["status"] == "warn" and "tried on Linux alone" in row["detail"]


def test_too_little_room_is_seen_where_none_can_be_reserved(tmp_path, monkeypatch):
    from sanakit.training.checkpoint import preflight

    preflight(tmp_path / "checkpoints", 1000)
    act_like_macos(monkeypatch)
    preflight(tmp_path / "checkpoints", 1000)
    with pytest.raises(SanakitError, match=r"SK0903.*do not fit \(No space left on device\)"):
        preflight(tmp_path / "checkpoints", 10**16)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_linux_is_the_system_that_is_stated():
    import tomllib

    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    systems = [text for text in project["classifiers"] if text.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]
    assert doctor._system()["status"] == ("ok" if sys.platform == "linux" else "warn")
