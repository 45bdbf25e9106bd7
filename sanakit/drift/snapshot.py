"""Snapshots: the statistics of a side in one safetensors file, with the hash of its content."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sanakit.drift.channel_moments import ChannelMoments
from sanakit.drift.permutation import thin
from sanakit.drift.sample import Sample
from sanakit.drift.shown import Shown, pack
from sanakit.errors import SanakitError
from sanakit.files import output

OLDER = "sanakit-drift-1"

FORMAT = "sanakit-drift-2"

SHOWN_ROWS = 512  # of those, whose images are kept: the ones that a page reads

SNAPSHOT_ROWS = 1024


def open_tensors(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise SanakitError("SK0701", f"{path} is no readable safetensors file: {error}") from error


def write_snapshot(
    samples: dict[str, Sample],
    path: Path,
    *,
    seed: int = 0,
    carry: Callable[[str, list[int]], dict[int, Shown]] = lambda kind, rows: {},
) -> Path:
    """One file; in a folder it is named after its content. Written beside and moved, so never half there.

    carry: images and labels of rows of a kind, as `images.shown_rows` reads them; kept of at most 512 rows.
    """
    tensors: dict[str, Tensor] = {}
    records = {}
    for kind, sample in samples.items():
        order = np.random.default_rng(seed).permutation(len(sample.rows))[:SNAPSHOT_ROWS]
        order.sort()
        tensors |= {f"{kind}.block.{k}": torch.from_numpy(v[order]).contiguous() for k, v in sample.blocks.items()}
        tensors[f"{kind}.rows"] = torch.from_numpy(sample.rows[order])
        tensors |= pack(carry(kind, thin(sample.rows[order], SHOWN_ROWS, 0).tolist()), kind)
        if sample.moments:
            m = sample.moments
            parts = {"mean": m.mean, "comoment": m.comoment, "third": m.third, "fourth": m.fourth}
            tensors |= {f"{kind}.moments.{k}": v.contiguous() for k, v in parts.items()}
        records[kind] = {
            "facts": sample.facts,
            "count": sample.count,
            "set_aside": sample.set_aside,
            "nonfinite": sample.nonfinite,
            "digest": sample.digest,
            "values": sample.moments.count if sample.moments else 0,
        }
    record = json.dumps(records, sort_keys=True)
    content = _content_hash(record, tensors)
    if path.is_dir():
        path = path / f"snapshot-{content[:16]}.safetensors"
    with output(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": FORMAT, "record": record, "content": content})
        except SafetensorError as error:  # what the system refuses has the library's own type
            raise OSError(str(error)) from error
    return path


def read_snapshot(path: Path) -> dict[str, Sample]:
    """Raises SK0701 when the content does not have the hash that the file states, and when another version of sanakit
    wrote features that do not compare with those of this one."""
    handle = open_tensors(path)
    metadata = handle.metadata()
    _refuse_other_format(path, metadata)
    tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118  a safetensors handle is no mapping
    if _content_hash(metadata["record"], tensors) != metadata["content"]:
        raise SanakitError("SK0701", f"{path} is a damaged snapshot: its content hash differs from the one it states")
    samples = {}
    for kind, record in json.loads(metadata["record"]).items():
        values = record.pop("values")
        prefix = f"{kind}.moments."
        parts = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        block = f"{kind}.block."
        samples[kind] = Sample(
            kind=kind,
            rows=tensors[f"{kind}.rows"].numpy(),
            blocks={k.removeprefix(block): v.numpy() for k, v in tensors.items() if k.startswith(block)},
            moments=ChannelMoments(count=values, **parts) if parts else None,
            **record | {"nonfinite": tuple(record["nonfinite"])},
        )
    return samples


def _refuse_other_format(path: Path, metadata: dict[str, str]) -> None:
    """Features of latents have changed since OLDER; those of embeddings have not."""
    stated = metadata["format"]
    if stated == FORMAT or (stated == OLDER and "latents" not in json.loads(metadata["record"])):
        return
    older = stated == OLDER
    raise SanakitError(
        "SK0701",
        f"{path} is a snapshot of format {stated}, this version reads {FORMAT}",
        cause="It was written before the features of latents held the power of high frequencies."
        if older
        else "Another version of sanakit wrote it.",
        fix="Write it anew from its latents: sanakit drift LATENTS LATENTS --snapshot FILE. "
        "For a run, do stage component again."
        if older
        else "Read it with the version that wrote it, or write it anew with this one.",
    )


def _content_hash(record: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(record.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
