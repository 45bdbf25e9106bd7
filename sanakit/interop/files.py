"""What a `save_pretrained` folder may hold, a config.json and weights in safetensors; and where made files are kept."""

import json
import os
from pathlib import Path
from typing import Any

from sanakit.errors import SanakitError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """config.json of a component folder. Raises SK0106 when there is none to read."""
    path = folder / name
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SanakitError("SK0106", f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise SanakitError("SK0106", f"{path} holds {type(config).__name__}, expected an object")
    return config


def require_safetensors(folder: Path) -> None:
    """Raises SK0111 when a folder holds no safetensors weights."""
    if not any(folder.glob("*.safetensors")):
        found = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        raise SanakitError("SK0111", f"{folder} holds {', '.join(found) or 'no weights'}, expected *.safetensors")


def cache_dir() -> Path:
    """Where rendered pictures, latents, embeddings and converted weights are kept: SANAKIT_CACHE, or the user's cache."""
    root = os.environ.get("SANAKIT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sanakit"
    path = Path(root)
    path.mkdir(parents=True, exist_ok=True)
    return path
