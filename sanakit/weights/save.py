"""Models of diffusers on disk, without the path of the machine that wrote them."""

import json
from pathlib import Path
from typing import Any


def save_model(model: Any, folder: Path) -> None:
    """`save_pretrained`; diffusers writes the folder that a model was read from into its configuration, which is left
    out: what is exported goes to other machines."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
