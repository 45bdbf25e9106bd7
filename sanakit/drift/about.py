"""Of which encoder and data a side of a comparison is, and how many samples it holds, as far as its files say."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sanakit.drift.sample import Sample

ROLES = {"latents": "vae", "embeddings": "text_encoder"}


def about_side(source: Path | None, samples: Mapping[str, Sample]) -> list[dict[str, Any]]:
    """Of every kind {kind, count, encoder, data}; encoder and data are None where nothing says them. A run folder says
    them in provenance.json, a file of `encode` in its header."""
    stated = _stated(source) if source else {}
    return [
        {"kind": kind, "count": sample.count, "encoder": stated.get(ROLES[kind]), "data": stated.get("data")}
        for kind, sample in samples.items()
    ]


def _stated(source: Path) -> dict[str, Any]:
    try:
        record = source.parent / "provenance.json"  # beside the snapshot that stage component leaves
        if record.is_file():
            facts = json.loads(record.read_text(encoding="utf-8"))
            name = facts["candidate"]["name"]
            return {"vae": name, "text_encoder": name, "data": facts["data"]["source"]}
        file = sorted(source.glob("*.safetensors"))[0] if source.is_dir() else source
        with safe_open(file, "pt") as handle:
            return dict(handle.metadata() or {})
    except (OSError, ValueError, LookupError, TypeError, SafetensorError):
        return {}  # a page without these facts is still a page
