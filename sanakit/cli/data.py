"""encode: fill the store of latents and embeddings."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sanakit.cli.app import app
from sanakit.cli.encode_options import (
    AsJson,
    AspectBuckets,
    BatchSize,
    Captions,
    Fit,
    ImageSize,
    MaxAspect,
    Mirror,
    PatchSize,
    Shard,
    TextEncoderDtype,
    VAEDtype,
    refuse_without_effect,
    share_of,
)
from sanakit.cli.options import BaseName, Device
from sanakit.cli.output import print_json
from sanakit.errors import SanakitError
from sanakit.files import require_utf8, try_writing, without_secrets, write_aside
from sanakit.placement import DTYPES

DRIFT_ROWS = 16_384  # what a drift statistic can use; a random sample where there are more
DRIFT_BYTES = 256 << 20  # of them in fp32: of large rows fewer are kept, at least DRIFT_LEAST
DRIFT_LEAST = 128
DRIFT_SEED = 0


@app.command()
def encode(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Folder of the cache; a second run reuses it.")],
    vae: Annotated[str | None, typer.Option("--vae", help="A name, `path:DIR` or `hub:owner/repo`.")] = None,
    text_encoder: Annotated[str | None, typer.Option("--text-encoder", help="Also, or only, embed captions.")] = None,
    data: Annotated[
        str, typer.Option("--data", help="A name, a folder, a manifest, .tar or .parquet files, or hf:owner/name.")
    ] = "embedded",
    image_size: ImageSize = None,
    base: BaseName = "tiny-sana",
    mirror: Mirror = False,
    aspect_buckets: AspectBuckets = False,
    max_aspect: MaxAspect = 2.0,
    batch_size: BatchSize = 32,
    patch_size: PatchSize = 1,
    fit: Fit = None,
    captions: Captions = "lines",
    shard: Shard = None,
    max_set_aside: Annotated[float, typer.Option("--max-set-aside", min=0, max=1)] = 0.05,
    as_json: AsJson = False,
    device: Device = "auto",
    vae_dtype: VAEDtype = "auto",
    text_encoder_dtype: TextEncoderDtype = "auto",
) -> None:
    """Fill a cache with latents (and embeddings); `sanakit drift` and `train --set data.cache=DIR` read it."""
    refuse_without_effect(ctx)
    share = share_of(shard)
    try_writing(require_utf8(out, "--out"))
    from sanakit.cli.progress import progress_of
    from sanakit.cli.view import print_data
    from sanakit.data import load_images
    from sanakit.distributed import barrier, is_main
    from sanakit.loading import load_base, load_text_encoder, load_vae
    from sanakit.ranks.sharing import ranks_share

    size = image_size or (int(load_base(base).card["image_size"]) if vae else 0)
    placement = _place(device, vae_dtype, text_encoder_dtype)
    autoencoder = load_vae(vae) if vae else None
    encoder = load_text_encoder(text_encoder) if text_encoder else None
    ledger, bucketing = out / "ledger.jsonl", (max_aspect, batch_size, patch_size) if aspect_buckets else None
    with ranks_share(), progress_of("auto" if is_main() else "none") as progress:
        dataset = load_images(data, max_set_aside=max_set_aside, fit=fit, captions=captions, ledger=ledger)
        if is_main():
            _write_ledger(out, dataset.ledger)
            print_data(dataset, out, buckets=aspect_buckets, as_json=as_json)
        latents = (str(vae), autoencoder, size, mirror, bucketing, progress, placement, share)
        rows = [] if autoencoder is None else _fill_latents(out, dataset, *latents)
        if encoder is not None:
            rows.append(_fill_embeddings(out, str(text_encoder), encoder, dataset, progress, placement, share))
    barrier()
    if is_main():
        _tell(out, dataset, rows, as_json)


def _tell(out: Path, dataset: Any, rows: list[dict[str, Any]], as_json: bool) -> None:
    """The ledger with what could not be encoded, and what was done."""
    from sanakit.data.describe import describe

    failed = [row for entry in rows for row in entry.pop("failed", [])]
    _write_ledger(out, dataset.ledger + failed)
    counts = {"images": len(dataset), "set_aside": len(dataset.ledger) + len(failed)}
    result = {"out": str(out), **counts, "data": describe(dataset), "entries": rows}
    print_json(result) if as_json else _print_entries(rows)


def _place(device: str, vae_dtype: str, text_encoder_dtype: str) -> Any:
    """The placement of encoders. Raises SK0104 for a dtype that is not known, or what `choose` raises."""
    from sanakit.placement import choose

    for option, dtype in (("--vae-dtype", vae_dtype), ("--text-encoder-dtype", text_encoder_dtype)):
        if dtype not in ("auto", *DTYPES):
            raise SanakitError("SK0104", f"{option} {dtype!r}; known: auto, {', '.join(DTYPES)}")
    return choose(device, vae=vae_dtype, text_encoder=text_encoder_dtype)


def _print_entries(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row.get("shards_left"):
            typer.echo(f"{row['kind']} of {row['name']}: {row['shards_left']:,} shards are left to other jobs")
            continue
        speed = "found, spot check passed" if row["reused"] else f"{row['per_second']:,.0f} a second"
        if 0 < row["encoded"] < row["count"]:
            speed = f"{row['encoded']:,} encoded, the others found; {speed}"
        typer.echo(f"{row['count']:,} {row['kind']} of {row['name']}, {row['bytes'] / 1e6:,.1f} MB: {speed}")
        typer.echo(f"  {row['folder']}  for drift: {row['file']}")


def _fill_latents(
    out: Path,
    dataset: Any,
    name: str,
    vae: Any,
    image_size: int,
    mirror: bool,
    bucketing: tuple[float, int, int] | None,
    progress: Any,
    placement: Any,
    share: tuple[int, int] | None,
) -> list[dict[str, Any]]:
    """The entry of the squares, and with `bucketing` (max_aspect, batch_size, patch_size) one of every bucket."""
    from sanakit.data.cache import latent_job, thumbnails
    from sanakit.data.decode import decode_rows
    from sanakit.drift.shown import as_labels

    wanted = [(dataset, image_size)]
    if bucketing is not None:
        max_aspect, batch_size, patch_size = bucketing
        ratio = vae.spec.spatial_compression_ratio * patch_size
        wanted += _in_buckets(dataset, image_size, ratio, max_aspect, batch_size)
    entries = []
    for some, size in wanted:

        def keep(rows: list[int], some: Any = some) -> dict[str, Any]:
            few = some.subset(rows)
            return {"images": thumbnails(few, image_size, progress=progress), "labels": as_labels(few.names)}

        job = latent_job(vae, some, size, mirror=mirror, progress=progress, placement=placement)
        stated = {"vae": name, "data": without_secrets(dataset.source)}
        entry = _fill(job, out, stated, keep, vae.normalize, share=share)
        reasons = decode_rows(some.subset(entry["failed"]), image_size)[1] if size == image_size else {}
        entry["failed"] = [
            {"name": some.names[row], "reason": reasons[place]}
            for place, row in enumerate(entry["failed"])
            if place in reasons
        ]
        entries.append(entry)
    return entries


def _in_buckets(dataset: Any, image_size: int, ratio: int, max_aspect: float, batch_size: int) -> list[tuple[Any, Any]]:
    """Every bucket of the training split with its size, as training assigns them; evaluation reads squares."""
    from sanakit.data.buckets import bucket_sizes
    from sanakit.data.dataset import bucketed

    train = dataset.split(False)
    sizes, members = bucketed(train, bucket_sizes(image_size, ratio, max_aspect), batch_size)
    return [(train.subset(rows.tolist()), size) for size, rows in zip(sizes, members, strict=True)]


def _fill_embeddings(
    out: Path, name: str, encoder: Any, dataset: Any, progress: Any, placement: Any, share: tuple[int, int] | None
) -> dict[str, Any]:
    """The entry of every caption, and of what the base reads in their place, as either text encoder of a swap may be
    asked for; what `drift` shows of it are the captions."""
    from sanakit.data.cache import embedding_job
    from sanakit.drift.shown import as_labels

    prompts = [*dataset.texts(), *dataset.for_base().texts()] if dataset.captions_base else dataset.texts()

    def keep(rows: list[int]) -> dict[str, Any]:
        return {"labels": as_labels([prompts[row] for row in rows])}

    stated = {"text_encoder": name, "data": without_secrets(dataset.source)}
    job = embedding_job(encoder, prompts, progress=progress, placement=placement)
    return _fill(job, out, stated, keep, share=share)


def _fill(
    job: Any,
    out: Path,
    stated: dict[str, str],
    keep: Callable[[list[int]], dict[str, Any]],
    normalize: Any = None,
    *,
    share: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Run the job, and write (rank 0) beside its entry the file that `drift` reads, with what `keep` gives of some rows
    to show them by. stated: the encoder by its role and the data, for a header. share: of this job of an array; as long
    as others have shards to write the row says only how many."""
    import torch

    from sanakit.distributed import is_main

    start = time.perf_counter()
    if share is not None and (left := job.run_share(out, share)):
        name, kind = next(iter(stated.values())), job.facts["kind"]
        return {"kind": kind, "name": name, "count": len(job.rows), "shards_left": left, "failed": []}
    entry, tensors, reused = job.run(out)
    seconds = time.perf_counter() - start
    count = len(job.rows)
    encoded = 0 if reused else int(entry.manifest["count"])
    file = entry.folder.with_suffix(".safetensors")
    failed = tensors["failed"][:] if "failed" in tensors else torch.zeros(count, dtype=torch.bool)
    if is_main():
        _write_for_drift(file, tensors, (~failed).nonzero()[:, 0], stated, keep, normalize)
    return {
        "kind": entry.facts["kind"],
        "name": next(iter(stated.values())),
        "folder": str(entry.folder),
        "file": str(file),
        "count": count,
        "shape": list(tensors["raw_latents" if normalize is not None else "embeds"].shape),
        "bytes": entry.nbytes,
        "facts": entry.facts,
        "reused": reused,
        "encoded": encoded,
        "failed": failed.nonzero()[:, 0].tolist(),
        "seconds": round(seconds, 3),
        "per_second": round((encoded or count) / seconds, 2),
    }


def _write_for_drift(
    file: Path,
    tensors: dict[str, Any],
    usable: Any,
    stated: dict[str, str],
    keep: Callable[[list[int]], dict[str, Any]],
    normalize: Any,
) -> None:
    """Latents, or embeddings and attention_mask, of a random sample of the usable rows; aside and renamed."""
    import torch

    from sanakit.data.store import save_tensors

    row_bytes = 4 * tensors["raw_latents" if normalize is not None else "embeds"].shape[1:].numel()
    kept = min(len(usable), DRIFT_ROWS, max(DRIFT_LEAST, DRIFT_BYTES // row_bytes))
    order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(DRIFT_SEED))
    chosen = usable[order[:kept].sort().values]
    if normalize is not None:
        content = {"latents": normalize(tensors["raw_latents"][chosen, 0])}
    else:
        content = {"embeddings": tensors["embeds"][chosen].float(), "attention_mask": tensors["mask"][chosen]}
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        told = stated | {"sample": f"{kept} of {len(usable)} rows, drawn with seed {DRIFT_SEED}"}
        save_tensors(content | keep(chosen.tolist()), temporary, metadata=told)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _write_ledger(folder: Path, ledger: list[dict[str, str]]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(folder / "ledger.jsonl", "".join(json.dumps(row) + "\n" for row in ledger))
    except OSError as error:
        raise SanakitError("SK0903", f"{folder}: {error}") from error
