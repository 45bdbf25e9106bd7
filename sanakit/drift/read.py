"""A side of a comparison from disk: a safetensors file, a folder of shards, or a snapshot."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sanakit.data.packed import PackedRows
from sanakit.drift.sample import EMBEDDINGS, LATENTS, Part, Sample, collect
from sanakit.drift.snapshot import open_tensors, read_snapshot
from sanakit.errors import SanakitError

NORMALISATION = ("normalisation", "normalization", "latents_mean", "latents_std", "scaling_factor", "shift_factor")

ENCODER = {"latents": "vae", "embeddings": "text_encoder"}  # what `encode` states in a header


def read_samples(source: Path, *, seed: int = 0) -> dict[str, Sample]:
    """{kind: sample} of a file, a folder of shards or a snapshot. Raises SK0701 or SK0704."""
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    if not source.exists() or not files:
        raise SanakitError(
            "SK0701", f"{source} {'holds no .safetensors file' if source.exists() else 'does not exist'}"
        )
    parts: dict[str, list[Part]] = {}
    facts: dict[str, dict[str, Any]] = {}
    encoders: dict[str, str | None] = {}
    for path in files:
        handle = open_tensors(path)
        metadata = handle.metadata() or {}
        if metadata.get("format", "").startswith("sanakit-drift-"):
            if len(files) > 1:
                raise SanakitError("SK0701", f"{source} mixes the snapshot {path.name} with other files; name one file")
            return read_snapshot(path)
        for kind, part, normalisation in _parts(handle, path):
            stated = {key: metadata[key] for key in NORMALISATION if key in metadata}
            kind_facts = {"normalisation": json.dumps(stated, sort_keys=True) if stated else normalisation}
            if facts.setdefault(kind, kind_facts) != kind_facts:
                raise SanakitError(
                    "SK0702", f"shards of {source} differ in normalisation: {facts[kind]} and {kind_facts}"
                )
            encoder = metadata.get(ENCODER[kind])
            if encoders.setdefault(kind, encoder) != encoder:
                raise SanakitError(
                    "SK0702",
                    f"shards of {source} differ in {ENCODER[kind]}: {encoders[kind]} and {encoder}",
                    fix="Name one of its files.",
                )
            parts.setdefault(kind, []).append(part)
    if not parts:
        raise SanakitError("SK0701", f"{source} holds {', '.join(open_tensors(files[0]).keys()) or 'no tensor'}")
    return {kind: collect(kind, kind_parts, facts[kind], seed, source) for kind, kind_parts in parts.items()}


def _parts(handle: Any, path: Path) -> Iterator[tuple[str, Part, str]]:
    keys = set(handle.keys())
    for name, normalisation in LATENTS.items():
        if name in keys:
            yield "latents", Part(handle, name, None), normalisation
            break
    if {"tokens", "mask", "starts"} <= keys:  # a shard of the store, without padding
        shards = {name: [handle.get_tensor(name)] for name in ("tokens", "mask", "starts")}
        packed = PackedRows(shards, torch.arange(len(shards["mask"][0])))
        yield "embeddings", Part({"embeds": packed, "mask": shards["mask"][0]}, "embeds", "mask"), "none"
        return
    for name, mask in EMBEDDINGS.items():
        if name in keys:
            if mask not in keys:
                raise SanakitError("SK0701", f"{path} holds `{name}` without `{mask}`")
            yield "embeddings", Part(handle, name, mask), "none"
            break
