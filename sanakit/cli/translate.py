"""translate: a cache of one VAE's latents turned into another's."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sanakit.cli.app import app
from sanakit.cli.ending import try_writing_files
from sanakit.cli.options import Device, Seed, place
from sanakit.cli.output import print_json
from sanakit.errors import SanakitError
from sanakit.files import output, require_utf8, try_writing
from sanakit.limits import LARGEST_COUNT, LARGEST_SIDE

PREVIEWED = 8  # prompts

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]


ImageSize = Annotated[
    int | None, typer.Option("--image-size", min=16, max=LARGEST_SIDE, help="Where the cache holds several sizes.")
]


@app.command()
def translate(
    cache: Annotated[Path, typer.Argument(help="A folder that `encode` filled with the latents of --from.")],
    source: Annotated[str, typer.Option("--from", help="The VAE of the cache: a name, `path:DIR` or `hub:`.")],
    target: Annotated[str, typer.Option("--to", help="The VAE whose latents are wanted.")],
    data: Annotated[str, typer.Option("--data", help="What the cache was filled from.")] = "embedded",
    image_size: ImageSize = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the new entry; default CACHE.")] = None,
    min_explained: Annotated[
        float, typer.Option("--min-explained", max=1, help="Nothing is written where R2 is not certainly above this.")
    ] = 0.9,
    num_images: Annotated[
        int, typer.Option("--num-images", min=32, max=LARGEST_COUNT, help="That both VAEs encode.")
    ] = 512,
    base: Annotated[
        str | None, typer.Option("--base", help="With --preview: a model whose VAE is that of --from.")
    ] = None,
    preview: Annotated[
        Path | None, typer.Option("--preview", help="PNG: samples of --base through its own decoder and that of --to.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    device: Device = "auto",
) -> None:
    """Turn cached latents into another VAE's by a closed-form map of 3 x 3 neighbours, and say what that costs."""
    if (base is None) != (preview is None):
        raise SanakitError("SK0104", "--preview FILE and --base NAME go together")
    if not cache.is_dir():
        raise SanakitError("SK0404", f"{cache} is not a folder", fix="Name the --out of `sanakit encode`.")
    try_writing(require_utf8(out or cache, "--out"))
    try_writing_files({"--preview": preview})
    from sanakit.alignment.translate_cache import cached_facts, cached_latents, fit_translation, require_explained
    from sanakit.cli.progress import progress_display
    from sanakit.data import load_images
    from sanakit.loading import load_base, load_vae

    placement = place(device)
    system = load_base(base).system(placement=placement, part="base") if base else None
    first, second = load_vae(source), load_vae(target)
    if system is not None and system.vae.fingerprint() != first.fingerprint():
        raise SanakitError("SK0104", f"the VAE of {base} is {system.vae.name}, --from is {source}")
    facts = cached_facts(cache, first, image_size)
    dataset = load_images(data, max_set_aside=1, fit=facts["fit"])
    with progress_display() as progress:
        job, rows = cached_latents(cache, first, dataset, facts, placement)
        arguments = (first, second, dataset, rows["raw_latents"], facts["size"])
        options = {"num_images": num_images, "seed": seed, "progress": progress, "placement": placement}
        options["failed"] = rows.get("failed")
        result = fit_translation(*arguments, **options)
        document = _quality(result, source, target) | {"min_explained": min_explained}
        if system is not None and preview is not None:
            document |= _preview(system, result.vae, dataset, preview, seed)
        if not as_json:
            _print_quality(document)
        require_explained(result, min_explained)
        document |= _write(out or cache, result, job, rows, dataset, facts)
    if as_json:
        print_json(document)
    else:
        _print_written(document, out or cache)


def _quality(result: Any, source: str, target: str) -> dict[str, Any]:
    r2 = result.explained
    return {
        "from": source,
        "to": target,
        "r2": r2.r2,
        "r2_low": r2.low,
        "r2_high": r2.high,
        "held_out_images": r2.images,
        "psnr_translated": float(result.psnr_translated.mean()),
        "psnr_encoded": float(result.psnr_encoded.mean()),
        "encode_per_second": result.encode_rate,
        "solve_seconds": result.seconds,
    }


def _write(out: Path, result: Any, job: Any, rows: Any, dataset: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """The entry and the VAE that reads it; hours are those of encoding at the measured rate, less those it took."""
    from sanakit.alignment.translate_cache import translated_job
    from sanakit.vaes.translated import save_translated

    start = time.perf_counter()
    filled = translated_job(job, rows, result.vae, dataset, facts)
    entry, _, reused = filled.run(out)
    seconds = time.perf_counter() - start
    count = len(dataset) * (2 if facts["mirror"] else 1)
    folder = save_translated(result.vae, out, str(filled.facts["encoder"]))
    return {
        "entry": str(entry.folder),
        "vae": f"path:{folder}",
        "latents": count,
        "reused": reused,
        "translate_seconds": seconds,
        "encode_hours": count / result.encode_rate / 3600,
        "hours_saved": (count / result.encode_rate - seconds - result.seconds) / 3600,
    }


def _preview(system: Any, vae: Any, dataset: Any, path: Path, seed: int) -> dict[str, Any]:
    """Samples of the base, above decoded by its own VAE, below translated and decoded by the other."""
    import torch
    from PIL import Image

    from sanakit.evaluation.figures import grid_of
    from sanakit.evaluation.reconstruction import psnr
    from sanakit.sampling import sample_euler

    step = max(1, len(dataset) // PREVIEWED)
    prompts = [captions[0] for captions in dataset.captions[::step][:PREVIEWED]]
    with system.placement.holding(system.text_encoder):
        embedded = system.text_encoder.encode(prompts)
    latents = system.vae.denormalize(sample_euler(system, embedded, seed=seed))
    with torch.no_grad():
        plain, other = system.vae.decode_raw(latents), vae.model.target.decode_raw(vae.model.map(latents))
    with output(path) as temporary:
        Image.fromarray(grid_of(torch.cat([plain, other]), columns=len(prompts))).save(temporary, format="PNG")
    return {"preview": str(path), "prompts": prompts, "psnr_of_previews": float(psnr(plain, other).mean())}


def _print_quality(row: dict[str, Any]) -> None:
    typer.echo(
        f"{row['from']} to {row['to']}: R2 {row['r2']:.3f} ({row['r2_low']:.3f} to {row['r2_high']:.3f}) on "
        f"{row['held_out_images']} held-out images, more than {row['min_explained']:g} expected"
    )
    typer.echo(
        f"  decoded PSNR {row['psnr_translated']:.1f} dB, of encoded latents {row['psnr_encoded']:.1f} dB "
        f"({row['psnr_translated'] - row['psnr_encoded']:+.1f})"
    )
    if "preview" in row:
        typer.echo(
            f"  samples of the base: {row['preview']}; above by its own decoder, below by that of {row['to']}, "
            f"{row['psnr_of_previews']:.1f} dB apart"
        )


def _print_written(row: dict[str, Any], out: Path) -> None:
    done = "found, spot check passed" if row["reused"] else f"written in {row['translate_seconds']:,.1f} s"
    typer.echo(f"{row['latents']:,} latents: {row['entry']}, {done}")
    typer.echo(
        f"  encoding them takes {row['encode_hours']:.3g} hours at {row['encode_per_second']:,.1f} a second (measured "
        f"here): {row['hours_saved']:.3g} hours saved"
    )
    typer.echo(f"  train on them: --set vae.name={row['vae']} --set data.cache={out}")
