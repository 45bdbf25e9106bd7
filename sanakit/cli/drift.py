"""drift: two caches, runs, snapshots or files of latents or embeddings compared, with one verdict."""

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.app import app
from sanakit.cli.output import print_json
from sanakit.errors import ExitCode, SanakitError

SNAPSHOT = "*.snapshot.safetensors"  # what stage component leaves in a run folder
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
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Did the distribution move? Permutation tests over images or prompts, Holm over all statistics."""
    paths = [_resolve(path) for path in (reference, current)]
    from sanakit.cli.view import print_drift
    from sanakit.drift.compare import compare
    from sanakit.drift.read import read_samples
    from sanakit.drift.shown import shown_rows
    from sanakit.drift.snapshot import write_snapshot

    first, second = (read_samples(path, seed=seed) for path in paths)
    comparison = compare(first, second, alpha=alpha, seed=seed).as_dict()
    if snapshot:
        write_snapshot(second, snapshot, seed=seed, carry=lambda kind, rows: shown_rows(paths[1], kind, rows))
    if html:
        from sanakit.drift.evidence import evidence
        from sanakit.reporting.drift import write_drift_report

        moments = {
            kind: {
                side: {"mean": s.moments.mean.tolist(), "std": s.moments.std.tolist()}
                for side, s in (("reference", first[kind]), ("current", second[kind]))
                if s.moments
            }
            for kind in first
            if kind in second
        }
        shown = {kind: evidence(first[kind], second[kind]) for kind in moments}
        carried = {
            kind: {
                side: shown_rows(path, kind, [row for row, _ in parts["farthest"].get(side, [])])
                for side, path in zip(("reference", "current"), paths, strict=True)
            }
            for kind, parts in shown.items()
        }
        write_drift_report(comparison, moments, shown, carried, str(reference), str(current), html)
    if as_json:
        print_json(comparison)
    else:
        print_drift(comparison)
    broken = any(reading.get("error") for reading in comparison["readings"])
    raise typer.Exit(ExitCode.ERROR if broken else EXIT[comparison["verdict"]])


def _resolve(path: Path) -> Path:
    """A run folder stands for the snapshot of its candidate's latents or embeddings."""
    if not (path / "validation.json").is_file():
        return path
    snapshots = sorted(path.glob(SNAPSHOT))
    if not snapshots:
        raise SanakitError("SK0701", f"run {path} holds no {SNAPSHOT}; stage component writes it")
    return snapshots[0]
