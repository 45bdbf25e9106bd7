"""A run folder: what was asked, what was measured, and where it came from. Appends are line-wise, writes atomic."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

try:
    import fcntl
except ImportError:  # Windows: nobody is seen at work
    fcntl = None  # type: ignore[assignment]

from sanakit import __version__
from sanakit.config import Config, dump_config
from sanakit.errors import SanakitError
from sanakit.files import without_secrets, write_aside
from sanakit.hashing import hash_record

SCHEMA_VERSION = 1
CHOSEN = ("latents", "embeddings")  # keys of `data` that change no result: `auto` is decided when a folder is made
LOCK = ".lock"
MOST_TOLD = 12  # fields that a message names


class RunFolder:
    """`runs/<utc>-<slug>-<hash>/`; the hash is of the configuration, so the same question finds its folder again."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self.key = config_key(config)

    @classmethod
    def open(cls, config: Config, folder: Path | None, choose: Callable[[Config], Config] | None = None) -> "RunFolder":
        """The named folder, the newest of this configuration under runs/, or a new one; its `config` has a choice in
        the place of every `auto` of CHOSEN: the folder's own, or what `choose` makes of it. Raises SK0105 or SK0903."""
        key = config_key(config)
        if folder is None:
            earlier = sorted(Path("runs").glob(f"*-{key}"))
            stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
            slug = re.sub(r"[^a-z0-9]+", "-", f"{config.kind}-{config.candidate or config.base}".lower())[:48].strip(
                "-"
            )
            folder = earlier[-1] if earlier else Path("runs") / f"{stamp}-{slug}-{key}"
        run = cls(folder, config)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stated = run.path / "config.yaml"
            if stated.is_file():
                run.config = run._agreed(stated)
            if choose and any(getattr(run.config.data, key) == "auto" for key in CHOSEN):
                run.config = choose(run.config)
            text = dump_config(stored(run.config))
            if not stated.is_file() or stated.read_text(encoding="utf-8") != text:
                run.write_text("config.yaml", text)
        except OSError as error:
            raise SanakitError("SK0903", f"{folder}: {error}") from error
        return run

    def _agreed(self, path: Path) -> Config:
        """The configuration with the choices that the folder's config.yaml has made. Raises SK0105, which names every
        field that differs."""
        asked = stored(self.config).model_dump(mode="json")
        try:
            stated = yaml.safe_load(path.read_text(encoding="utf-8"))
            there = stored(Config(**stated)).model_dump(mode="json")
        except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
            told = str(error).splitlines()[0]
            raise SanakitError("SK0105", f"{path} is no configuration of this version: {told}") from error
        choices = {key: there["data"][key] for key in CHOSEN if asked["data"][key] == "auto"}
        changed = []
        for section, values in asked.items():
            for key, value in values.items() if isinstance(values, dict) else [("", values)]:
                other = there[section][key] if key else there[section]
                if other != value and not (section == "data" and key in CHOSEN):
                    changed.append(f"{section}.{key}".rstrip(".") + f" is {other!r} there, {value!r} asked")
        if changed:
            more = f" and {len(changed) - MOST_TOLD} more" if len(changed) > MOST_TOLD else ""
            raise SanakitError("SK0105", f"{self.path}: {'; '.join(changed[:MOST_TOLD])}{more}")
        return self.config.model_copy(update={"data": self.config.data.model_copy(update=choices)})

    def write_text(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, text)

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=1, default=str) + "\n")

    def read_json(self, name: str, default: Any = None) -> Any:
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
        except ValueError as error:
            raise SanakitError(
                "SK0109", f"{path}: {error}", fix="Remove the file, or name another --run-dir."
            ) from error

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def drop_stage(self, name: str, stage: str) -> None:
        """Remove a stage's lines before it runs anew, so that a repeated stage never doubles them."""
        path = self.path / name
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            self.write_text(name, "".join(line for line in lines if json.loads(line).get("stage") != stage))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """This process alone works in the folder. Raises SK0130 that says who does, and since when. The lock ends with
        the process that holds it; a file system without locks has none."""
        path = self.path / LOCK
        handle = _take_lock(path)
        try:
            if handle is not None:
                os.truncate(handle, 0)
                os.pwrite(handle, (json.dumps(_own_name()) + "\n").encode(), 0)
            yield
        finally:
            if handle is not None:
                path.unlink(missing_ok=True)
                os.close(handle)


def _take_lock(path: Path) -> int | None:
    """A descriptor that holds the lock of the file at `path`. Raises SK0130 where another process does."""
    if fcntl is None:
        return None
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                return handle  # else it was removed by the process that held it before
        except BlockingIOError as error:
            holder = os.pread(handle, 4096, 0).decode(errors="replace")
            os.close(handle)
            raise SanakitError("SK0130", f"{path.parent} is in use{_told(holder)}") from error
        except OSError:
            os.close(handle)
            return None
        os.close(handle)


def _own_name() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or (str(os.getuid()) if hasattr(os, "getuid") else "")
    return {"process": os.getpid(), "host": platform.node(), "user": user, "since": now}


def _told(holder: str) -> str:
    try:
        who = json.loads(holder)
        return f" by process {who['process']} of {who['user']} on {who['host']} since {who['since']}"
    except (ValueError, KeyError, TypeError):
        return ""


def config_key(config: Config) -> str:
    asked = stored(config).model_dump(mode="json")
    asked["data"] = {key: value for key, value in asked["data"].items() if key not in CHOSEN}
    return hash_record(asked | {"schema": SCHEMA_VERSION})[:10]


def stored(config: Config) -> Config:
    """The configuration as it is written down: an address of data without credentials and query."""
    source = without_secrets(config.data.source)
    if source == config.data.source:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"source": source})})


def provenance(facts: dict[str, Any]) -> dict[str, Any]:
    """Git commit and dirty-diff hash of the working folder, packages, hardware, and the caller's facts."""
    import hashlib

    def git(*arguments: str) -> str:
        try:
            result = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return result.stdout.strip() if result.returncode == 0 else ""

    diff = git("diff", "HEAD")
    names = ("torch", "diffusers", "transformers", "torchmetrics", "scikit-learn", "pandas", "numpy", "pillow")
    return {
        "sanakit": __version__,
        "git": {
            "commit": git("rev-parse", "HEAD"),
            "dirty_diff": hashlib.sha256(diff.encode()).hexdigest() if diff else "",
        },
        "packages": {name: importlib.metadata.version(name) for name in names},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **facts,
    }
