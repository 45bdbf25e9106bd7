"""One side of a comparison: image-level features of latents or embeddings, read in chunks from any source.

A source is a .safetensors file (`latents` (N, C, h, w) or `raw_latents` (N[, M views], C, h, w); `embeddings` or
`embeds` (N, L, D) with `attention_mask` or `mask` (N, L)), a folder of such shards, or a snapshot. A snapshot is one
safetensors file whose header holds the facts as JSON: sufficient statistics of all rows, features of a random
subset, and its own content hash.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sanakit.drift.features import block_names, embedding_blocks, latent_blocks
from sanakit.drift.moments import Moments
from sanakit.drift.permutation import thin
from sanakit.drift.pictures import Shown, pack
from sanakit.errors import SanakitError

CHUNK = 256
MOST_ROWS = 8192  # features kept in memory
SNAPSHOT_ROWS = 1024
SHOWN_ROWS = 512  # of those, whose pictures are kept: the ones that a page looks at
FORMAT = "sanakit-drift-2"
OLDER = "sanakit-drift-1"
LATENTS = {"latents": "normalised", "raw_latents": "raw"}
EMBEDDINGS = {"embeddings": "attention_mask", "embeds": "mask"}
ENCODER = {"latents": "vae", "embeddings": "text_encoder"}  # what `encode` states in a header
NORMALISATION = ("normalisation", "normalization", "latents_mean", "latents_std", "scaling_factor", "shift_factor")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """kind: latents or embeddings. facts: what both sides must share. count: samples seen, those set aside included.
    set_aside: samples with NaN or Inf. nonfinite: such values a channel. blocks: features (rows, k) of the finite
    samples, at most 8,192 of them drawn at random; rows: their indices. moments: of all finite values a channel."""

    kind: str
    facts: dict[str, Any]
    count: int
    set_aside: int
    nonfinite: tuple[int, ...]
    rows: np.ndarray
    blocks: dict[str, np.ndarray]
    moments: Moments | None
    digest: str

    @property
    def channels(self) -> int:
        return int(self.facts["channels"])

    def matrix(self, *blocks: str) -> np.ndarray:
        """(rows, columns) of the blocks that there are."""
        found = [self.blocks[b] for b in blocks if b in self.blocks]
        return np.concatenate(found, 1) if found else np.empty((len(self.rows), 0), np.float32)

    def names(self, *blocks: str) -> list[str]:
        return [
            name for b in blocks if b in self.blocks for name in block_names(b, self.blocks[b].shape[1], self.channels)
        ]


def sample_latents(latents: Tensor, *, normalisation: str = "normalised", seed: int = 0) -> Sample:
    """(N, C, h, w) in memory. Raises SK0704 when empty, SK0701 at another rank."""
    return _collect("latents", [_Part({"latents": latents}, "latents", None)], {"normalisation": normalisation}, seed)


def sample_embeddings(embeddings: Tensor, mask: Tensor, *, seed: int = 0) -> Sample:
    """(N, L, D) with mask (N, L), 1 = keep."""
    parts = [_Part({"embeddings": embeddings, "mask": mask}, "embeddings", "mask")]
    return _collect("embeddings", parts, {"normalisation": "none"}, seed)


def read_samples(source: Path, *, seed: int = 0) -> dict[str, Sample]:
    """{kind: sample} of a file, a folder of shards or a snapshot. Raises SK0701 or SK0704."""
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    if not source.exists() or not files:
        raise SanakitError(
            "SK0701", f"{source} {'holds no .safetensors file' if source.exists() else 'does not exist'}"
        )
    parts: dict[str, list[_Part]] = {}
    facts: dict[str, dict[str, Any]] = {}
    encoders: dict[str, str | None] = {}
    for path in files:
        handle = _open(path)
        metadata = handle.metadata() or {}
        if metadata.get("format", "").startswith("sanakit-drift-"):
            if len(files) > 1:
                raise SanakitError("SK0701", f"{source} mixes the snapshot {path.name} with other files; name one file")
            return read_snapshot(path)
        for kind, part, normalisation in _parts(handle, path):
            stated = {key: metadata[key] for key in NORMALISATION if key in metadata}
            own = {"normalisation": json.dumps(stated, sort_keys=True) if stated else normalisation}
            if facts.setdefault(kind, own) != own:
                raise SanakitError("SK0702", f"shards of {source} differ in normalisation: {facts[kind]} and {own}")
            encoder = metadata.get(ENCODER[kind])
            if encoders.setdefault(kind, encoder) != encoder:
                raise SanakitError(
                    "SK0702",
                    f"shards of {source} differ in {ENCODER[kind]}: {encoders[kind]} and {encoder}",
                    fix="Name one of its files.",
                )
            parts.setdefault(kind, []).append(part)
    if not parts:
        raise SanakitError("SK0701", f"{source} holds {', '.join(_open(files[0]).keys()) or 'no tensor'}")
    return {kind: _collect(kind, found, facts[kind], seed, source) for kind, found in parts.items()}


@dataclass(frozen=True)
class _Part:
    """A tensor that is read in chunks: a dictionary of tensors or an open file."""

    tensors: Any
    name: str
    mask: str | None

    def view(self, name: str) -> Any:
        return self.tensors[name] if isinstance(self.tensors, dict) else self.tensors.get_slice(name)

    @property
    def shape(self) -> tuple[int, ...]:
        tensor = self.view(self.name)
        return tuple(tensor.shape if isinstance(tensor, Tensor) else tensor.get_shape())

    def chunks(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """One view of a picture: its mirror image is no further sample."""
        tensor, mask = self.view(self.name), self.view(self.mask) if self.mask else None
        for start in range(0, self.shape[0], CHUNK):
            rows = tensor[start : start + CHUNK]
            yield rows[:, 0] if rows.ndim == 5 else rows, None if mask is None else mask[start : start + CHUNK]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise SanakitError("SK0701", f"{path} is no readable safetensors file: {error}") from error


def _parts(handle: Any, path: Path) -> Iterator[tuple[str, _Part, str]]:
    keys = set(handle.keys())
    for name, normalisation in LATENTS.items():
        if name in keys:
            yield "latents", _Part(handle, name, None), normalisation
            break
    for name, mask in EMBEDDINGS.items():
        if name in keys:
            if mask not in keys:
                raise SanakitError("SK0701", f"{path} holds `{name}` without `{mask}`")
            yield "embeddings", _Part(handle, name, mask), "none"
            break


def _collect(kind: str, parts: list[_Part], facts: dict[str, Any], seed: int, source: Path | str = "memory") -> Sample:
    """One sample of all parts, read in chunks. Raises SK0701, SK0702 or SK0704."""
    shape, total = _common_shape(kind, parts, source)
    if kind == "latents":
        facts = facts | {"channels": shape[-3], "height": shape[-2], "width": shape[-1]}
    else:
        facts = facts | {"channels": shape[-1]}
    chosen = np.zeros(total, bool)
    chosen[np.random.default_rng(seed).choice(total, min(total, MOST_ROWS), replace=False)] = True
    collector = _Collector(kind, facts, chosen)
    for part in parts:
        for values, mask in part.chunks():
            collector.add(values, mask, source)
    return collector.sample()


def _common_shape(kind: str, parts: list[_Part], source: Path | str) -> tuple[tuple[int, ...], int]:
    """The shape of a row, which all parts share, and the number of rows. Raises SK0701, SK0702 or SK0704."""
    for part in parts:
        wanted = (4, 5) if part.name in LATENTS else (3,)
        if len(part.shape) not in wanted or 0 in part.shape[1:]:
            expected = "(N, C, h, w)" if part.name in LATENTS else "(N, L, D)"
            raise SanakitError("SK0701", f"{source}: `{part.name}` is {part.shape}, expected {expected}")
    total = sum(part.shape[0] for part in parts)
    if total == 0:
        raise SanakitError(
            "SK0704", f"{source} holds 0 {'pictures' if kind == 'latents' else 'prompts'}, expected 32 or more"
        )
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise SanakitError("SK0702", f"shards of {source} differ in shape: {sorted(shapes)}")
    return shapes.pop(), total


class _Collector:
    """What a sample keeps of chunks that are read once: counts and moments of all rows, features of the chosen ones."""

    def __init__(self, kind: str, facts: dict[str, Any], chosen: np.ndarray) -> None:
        self.kind, self.facts, self.chosen = kind, facts, chosen
        self.digest = hashlib.sha256(json.dumps([kind, facts], sort_keys=True).encode())
        self.blocks: list[dict[str, Tensor]] = []
        self.indices: list[Tensor] = []
        self.moments: Moments | None = None
        self.nonfinite = torch.zeros(facts["channels"], dtype=torch.long)
        self.set_aside, self.start = 0, 0

    def add(self, values: Tensor, mask: Tensor | None, source: Path | str) -> None:
        """The next chunk: latents (n, C, h, w), or embeddings (n, L, D) with their mask (n, L). Raises SK0701."""
        self.digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
        values = values.float()
        if mask is not None:
            self.digest.update(mask.contiguous().view(torch.uint8).numpy().tobytes())
            if mask.shape != values.shape[:2]:
                raise SanakitError(
                    "SK0701", f"{source}: mask is {tuple(mask.shape)}, expected {tuple(values.shape[:2])}"
                )
            values = values.masked_fill(~mask.bool()[..., None], 0)
        bad = ~values.isfinite()
        self.nonfinite += bad.movedim(1, -1).flatten(0, -2).sum(0) if mask is None else bad.flatten(0, 1).sum(0)
        finite = ~bad.flatten(1).any(1)
        self.set_aside += int((~finite).sum())
        self._add_moments(values[finite], None if mask is None else mask[finite])
        keep = finite & torch.from_numpy(self.chosen[self.start : self.start + len(values)])
        if keep.any():
            kept = latent_blocks(values[keep]) if mask is None else embedding_blocks(values[keep], mask[keep])
            self.blocks.append(kept)
            self.indices.append(self.start + keep.nonzero()[:, 0])
        self.start += len(values)

    def _add_moments(self, sound: Tensor, mask: Tensor | None) -> None:
        if not len(sound):
            return
        tokens = sound if mask is None else sound[mask.bool()]
        if len(tokens):
            part = Moments.of(tokens)
            self.moments = part if self.moments is None else self.moments.merge(part)

    def sample(self) -> Sample:
        blocks = {name: torch.cat([b[name] for b in self.blocks]).numpy() for name in (self.blocks or [{}])[0]}
        return Sample(
            kind=self.kind,
            facts=self.facts,
            count=self.start,
            set_aside=self.set_aside,
            nonfinite=tuple(self.nonfinite.tolist()),
            rows=torch.cat(self.indices).numpy() if self.indices else np.empty(0, int),
            blocks=blocks,
            moments=self.moments,
            digest=self.digest.hexdigest(),
        )


def write_snapshot(
    samples: dict[str, Sample],
    path: Path,
    *,
    seed: int = 0,
    carry: Callable[[str, list[int]], dict[int, Shown]] = lambda kind, rows: {},
) -> Path:
    """One file; in a folder it is named after its content. Written beside and moved, so never half there.

    carry: pictures and labels of rows of a kind, as `pictures.shown_rows` reads them; kept of at most 512 rows.
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
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"format": FORMAT, "record": record, "content": content})
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SanakitError("SK0903", f"cannot write {path}: {error}") from error
    return path


def read_snapshot(path: Path) -> dict[str, Sample]:
    """Raises SK0701 when the content does not have the hash that the file states, and when another version of sanakit
    wrote features that do not compare with those of this one."""
    handle = _open(path)
    metadata = handle.metadata()
    _refuse_other_format(path, metadata)
    tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118  a safetensors handle is no mapping
    if _content_hash(metadata["record"], tensors) != metadata["content"]:
        raise SanakitError("SK0701", f"{path} is a damaged snapshot: its content hash differs from the one it states")
    found = {}
    for kind, record in json.loads(metadata["record"]).items():
        values = record.pop("values")
        prefix = f"{kind}.moments."
        parts = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        block = f"{kind}.block."
        found[kind] = Sample(
            kind=kind,
            rows=tensors[f"{kind}.rows"].numpy(),
            blocks={k.removeprefix(block): v.numpy() for k, v in tensors.items() if k.startswith(block)},
            moments=Moments(count=values, **parts) if parts else None,
            **record | {"nonfinite": tuple(record["nonfinite"])},
        )
    return found


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
        fix="Write it anew from its latents: sanakit drift LATENTS LATENTS --snapshot FILE. For a run, do stage component "
        "again."
        if older
        else "Read it with the version that wrote it, or write it anew with this one.",
    )


def subset(sample: Sample, index: np.ndarray) -> Sample:
    """Some rows of a sample; moments and counts stay those of the whole."""
    return replace(sample, rows=sample.rows[index], blocks={k: v[index] for k, v in sample.blocks.items()})


def _content_hash(record: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(record.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
