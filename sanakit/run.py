"""A run folder: what was asked, what was measured, and where it came from. Appends are line-wise, writes atomic."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from sanakit import __version__
from sanakit.config import Config, dump_config
from sanakit.errors import SanakitError
from sanakit.hashing import hash_record

SCHEMA_VERSION = 1


class RunFolder:
    """`runs/<utc>-<slug>-<hash>/`; the hash is of the configuration, so the same question finds its folder again."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self.key = config_key(config)

    @classmethod
    def open(cls, config: Config, folder: Path | None) -> "RunFolder":
        """The named folder, the newest of this configuration under runs/, or a new one. Raises SK0105 or SK0903."""
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
                run._refuse_other(stated.read_text(encoding="utf-8"))
            else:
                run.write_text("config.yaml", dump_config(config))
        except OSError as error:
            raise SanakitError("SK0903", f"{folder}: {error}") from error
        return run

    def _refuse_other(self, text: str) -> None:
        asked, other = dump_config(self.config).splitlines(), text.splitlines()
        if asked != other:
            changed = [f"{b.strip()} there, {a.strip()} asked" for a, b in zip(asked, other, strict=False) if a != b]
            raise SanakitError("SK0105", f"{self.path}: {'; '.join(changed[:3]) or 'other keys'}")

    def write_text(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)

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


def config_key(config: Config) -> str:
    return hash_record(config.model_dump(mode="json") | {"schema": SCHEMA_VERSION})[:10]


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
