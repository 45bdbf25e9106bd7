"""A run folder: what was asked, what was measured, and where it came from. Appends are line-wise, writes atomic."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from sanakit import __version__
from sanakit.config import Config, dump_config
from sanakit.config_fields import read_yaml
from sanakit.errors import SanakitError
from sanakit.files import without_secrets, write_aside
from sanakit.hashing import hash_record
from sanakit.locks import own_name, take_lock
from sanakit.records import MISREAD, read_json, read_lines, read_validation

SCHEMA_VERSION = 1
FREE = ("train.micro_batch", "train.gradient_checkpointing")  # how a step is cut to fit a device; a run may move
AUTOMATIC = ("train.precision", *FREE)
CHOSEN = ("data.latents", "data.embeddings")  # change no result: `auto` is decided when a folder is made, and stays
LEFT_TO_BASE = "data.image_size"  # null in a configuration that was written by hand: the base decides
LOCK = ".lock"
MOST_TOLD = 12  # fields that a message names


class RunFolder:
    """`runs/<utc>-<slug>-<hash>/`; the hash is of the configuration, so the same question finds its folder again."""

    def __init__(self, path: Path, config: Config, automatic: tuple[str, ...] = ()) -> None:
        """automatic: keys whose value was chosen for the device, as they were left to it."""
        self.path, self.config, self.automatic = path, config, automatic
        self.key = config_key(config)

    @classmethod
    def open(
        cls,
        config: Config,
        folder: Path | None,
        stages: Sequence[str] = (),
        resolve: Callable[[Config], Config] = lambda config: config,
    ) -> "RunFolder":
        """The named folder, the newest of this configuration under runs/, or a new one.

        stages: that are about to run; what no finished stage beside them has read may differ from the folder's
        config.yaml, which is then written anew. resolve: puts values in the place of `auto`, as the device allows; what
        an earlier start of the run chose and its results depend on stays. Raises SK0105 or SK0903."""
        if folder is None:
            slug = re.sub(r"[^a-z0-9]+", "-", f"{config.kind}-{config.candidate or config.base}".lower())
            slug = slug[:48].strip("-")
            earlier = [path for path in sorted(Path("runs").glob(f"*-{slug}-*")) if _agrees(config, _stated(path))]
            stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
            folder = earlier[-1] if earlier else Path("runs") / f"{stamp}-{slug}-{config_key(resolve(config))}"
        config = _continued(config, folder)
        automatic = tuple(key for key in AUTOMATIC if _value(config.model_dump(), key) == "auto")
        run = cls(folder, resolve(config), automatic)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stated = run.path / "config.yaml"
            if stated.is_file():
                run._refuse_other(stated, stages)
            text = dump_config(stored(run.config))
            if not stated.is_file() or stated.read_text(encoding="utf-8") != text:
                run.write_text("config.yaml", text)
        except OSError as error:
            raise SanakitError("SK0903", f"{folder}: {error}") from error
        return run

    def _refuse_other(self, path: Path, stages: Sequence[str]) -> None:
        """Raises SK0105, which names every field that differs and that a finished stage has read."""
        asked = flat(stored(self.config))
        try:
            there = flat(stored(Config(**read_yaml(path.read_text(encoding="utf-8")))))
        except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
            told = str(error).splitlines()[0]
            raise SanakitError("SK0105", f"{path} is no configuration of this version: {told}") from error
        done = set(self.read_validation()["stages"]) - set(stages)
        changed = []
        for key, value in asked.items():
            if key in (*FREE, *CHOSEN) or (key == LEFT_TO_BASE and there[key] is None):
                continue
            reader = first_reader(key)
            readers = {"component", "smoke", "full"} if reader == "component" else {reader, "full"}
            if there[key] != value and (reader == "component" or readers & done):
                by = "" if reader == "component" else f", and stage {' and '.join(sorted(readers & done))} has read it"
                changed.append(f"{key} is {there[key]!r} there, {value!r} asked{by}")
        if changed:
            more = f" and {len(changed) - MOST_TOLD} more" if len(changed) > MOST_TOLD else ""
            raise SanakitError("SK0105", f"{self.path}: {'; '.join(changed[:MOST_TOLD])}{more}")

    def write_text(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, text)

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=1, default=str) + "\n")

    def read_json(self, name: str, default: Any) -> Any:
        """The content of a file, of the default's type. Raises SK0109."""
        with self._as_written(name):
            return read_json(self.path / name, default)

    def read_validation(self) -> dict[str, Any]:
        with self._as_written("validation.json"):
            return read_validation(self.path / "validation.json")

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def keep_rows(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Leave the other rows out of a file, and half a last line with them: before a stage runs anew, or goes on from
        an earlier step, so that no row is doubled. Raises SK0109."""
        if (self.path / name).is_file():
            with self._as_written(name):
                rows = [json.dumps(row) + "\n" for row in read_lines(self.path / name) if wanted(row)]
            self.write_text(name, "".join(rows))

    @contextmanager
    def _as_written(self, name: str) -> Iterator[None]:
        try:
            yield
        except MISREAD as error:
            told = f"{self.path / name} does not read as what a run writes: {type(error).__name__}: {error}"
            raise SanakitError("SK0109", told, fix="Remove the file, or name another --run-dir.") from error

    @contextmanager
    def locked(self, wanted: bool = True) -> Iterator[None]:
        """This process alone works in the folder, unless it is not wanted. Raises SK0131 that says who does, and since
        when. The lock ends with the process that holds it; a file system without locks has none."""
        path = self.path / LOCK
        handle = take_lock(path) if wanted else None
        try:
            if handle is not None:
                os.truncate(handle, 0)
                os.pwrite(handle, (json.dumps(own_name()) + "\n").encode(), 0)
            yield
        finally:
            if handle is not None:
                path.unlink(missing_ok=True)
                os.close(handle)


# what only stage full reads, and what the stages from smoke on read; everything else is read from the beginning
OF_FULL = tuple(
    f"train.{key}"
    for key in (
        "max_steps",
        "checkpoint_every",
        "schedule",
        "ema_decay",
        "gradual",
        "parallel",
        "async_checkpoints",
        "hang_timeout",
        "log_every",
        "sample_every",
        "report_to",
    )
)
FROM_SMOKE = ("smoke.", "train.", "adapter.")
ALWAYS = ("train.seed", "train.target")


def first_reader(key: str) -> str:
    """The first stage that reads a key of the configuration, such as `train.max_steps`."""
    if key in OF_FULL or key.startswith(("monitors.", "evaluate.")):
        return "full"
    return "smoke" if key.startswith(FROM_SMOKE) and key not in ALWAYS else "component"


def flat(config: Config) -> dict[str, Any]:
    """Every key of the configuration with its value, sections joined by a dot."""
    return {
        f"{section}.{key}".rstrip("."): value
        for section, values in config.model_dump(mode="json").items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }


def stage_key(config: Config, stage: str) -> str:
    """Hash of the keys that a stage reads: it is measured again where one of them changes, and only then. Stage full
    does not read what the race alone is asked."""
    stages = ("component", "smoke", "full")
    every = {key: value for key, value in flat(stored(config)).items() if key not in CHOSEN}
    read = {key: value for key, value in every.items() if stages.index(first_reader(key)) <= stages.index(stage)}
    if stage == "full":
        kept = ("smoke.held_out", "smoke.samples")
        read = {key: value for key, value in read.items() if not key.startswith("smoke.") or key in kept}
    return hash_record(read | {"schema": SCHEMA_VERSION})[:10]


def config_key(config: Config) -> str:
    """Of everything that results depend on: the device, how a step is cut to fit it, and whether encodings are made
    ahead are not among it."""
    values = stored(config).model_dump(mode="json")
    for key in (*FREE, *CHOSEN):
        section, _, name = key.partition(".")
        values[section].pop(name)
    return hash_record(values | {"schema": SCHEMA_VERSION})[:10]


def stored(config: Config) -> Config:
    """The configuration as it is written down: an address of data without credentials and query."""
    source = without_secrets(config.data.source)
    if source == config.data.source:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"source": source})})


def _stated(folder: Path) -> dict[str, Any]:
    """config.yaml of a run folder; empty where there is none that can be read."""
    try:
        written = read_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return written if isinstance(written, dict) else {}


def _value(values: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    inner = values.get(section)
    return inner.get(name) if isinstance(inner, dict) else None


def _agrees(config: Config, stated: dict[str, Any]) -> bool:
    """Whether a run of `stated` is a run of this configuration: `auto` agrees with what an earlier start chose."""
    current = stored(config).model_dump(mode="json")
    if current.keys() != stated.keys() or not all(isinstance(stated[name], dict) for name in ("train", "data")):
        return False
    for key in (*AUTOMATIC, *CHOSEN):
        if key in (*FREE, *CHOSEN) or _value(current, key) == "auto":
            section, _, name = key.partition(".")
            current[section][name] = _value(stated, key)
    return bool(current == stated)


def _continued(config: Config, folder: Path) -> Config:
    """The configuration as a run in `folder` goes on with it: precision, and whether encodings are made ahead, as an
    earlier start chose it, and what may change with the device chosen anew where it was not asked for."""
    stated, train = _stated(folder), config.train
    changes: dict[str, Any] = {}
    if train.precision == "auto" and (precision := _value(stated, "train.precision")) is not None:
        changes["precision"] = precision
    try:
        known = json.loads((folder / "provenance.json").read_text(encoding="utf-8")).get("automatic", [])
    except (OSError, ValueError, AttributeError):
        known = []
    for key in FREE:
        name = key.removeprefix("train.")
        if key in known and _value(stated, key) == getattr(train, name):
            changes[name] = "auto"
    data: dict[str, Any] = {}
    for key in CHOSEN:
        name = key.removeprefix("data.")
        if getattr(config.data, name) == "auto" and (choice := _value(stated, key)) is not None:
            data[name] = choice
    sections = {"train": train.model_copy(update=changes), "data": config.data.model_copy(update=data)}
    return config.model_copy(update=sections) if changes or data else config


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
