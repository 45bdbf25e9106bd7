"""drift: two caches, runs, snapshots or files of latents or embeddings compared, with one verdict."""

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.app import app
from sanakit.cli.ending import try_writing_files
from sanakit.cli.options import Seed
from sanakit.cli.output import print_json
from sanakit.errors import ExitCode
from sanakit.files import try_writing

EXIT = {"no-drift": ExitCode.PASSED, "drift": ExitCode.GATE_FAILED, "inconclusive": ExitCode.INCONCLUSIVE}
Side = "A .safetensors file, a folder of `encode`, a run folder, or a snapshot."


@app.command()
def drift(
    reference: Annotated[Path, typer.Argument(help=Side)],
    current: Annotated[Path, typer.Argument(help=Side)],
    alpha: Annotated[
        float, typer.Option("--alpha", min=1e-6, max=0.5, help="False-alarm bound of the verdict.")
    ] = 0.05,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a report, one file.")] = None,
    snapshot: Annotated[
        Path | None, typer.Option("--snapshot", help="Also keep CURRENT as a snapshot: a file, or a folder.")
    ] = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Did the distribution move? Permutation tests over images or prompts, Holm over all statistics."""
    in_folder = snapshot is not None and snapshot.is_dir()  # named after its content there
    try_writing_files({"--html": html, "--snapshot": None if in_folder else snapshot})
    if snapshot is not None and in_folder:
        try_writing(snapshot)
    from sanakit.cli.view import print_drift
    from sanakit.drift.files import compare_files

    comparison = compare_files(reference, current, alpha=alpha, seed=seed, html=html, snapshot=snapshot).as_dict()
    if as_json:
        print_json(comparison)
    else:
        print_drift(comparison)
    broken = any(reading.get("error") for reading in comparison["readings"])
    raise typer.Exit(ExitCode.ERROR if broken else EXIT[comparison["verdict"]])
