"""sample, report, compare: what runs have left."""

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.app import app
from sanakit.cli.ending import try_writing_files
from sanakit.cli.names import model_named
from sanakit.cli.options import AllowPickle, Device, GuidanceScale, NumSteps, Seed, convert_native, place
from sanakit.cli.output import print_json
from sanakit.errors import SanakitError
from sanakit.files import output


@app.command()
def sample(
    model: Annotated[str, typer.Option("--model", help="A run, RUN/model, a pipeline folder, or a base by name.")],
    prompt: Annotated[str, typer.Option("--prompt")],
    out: Annotated[Path, typer.Option("--out", help="PNG to write.")],
    seed: Seed = 0,
    num_steps: NumSteps = 24,
    guidance_scale: GuidanceScale = 3.0,
    scheduler: Annotated[str, typer.Option("--scheduler", help="euler, dpm++ or unipc.")] = "euler",
    allow_pickle: AllowPickle = False,
    device: Device = "auto",
) -> None:
    """Draw one image."""
    try_writing_files({"--out": out})
    from PIL import Image

    from sanakit.api.options import as_number
    from sanakit.evaluation.figures import to_uint8
    from sanakit.loading import load_base
    from sanakit.sampling import new_scheduler, require_finite, sample_images

    new_scheduler(scheduler, 1.0)  # refused before the model is loaded
    as_number("--guidance-scale", guidance_scale)
    name = model_named(model)
    if allow_pickle:
        convert_native(name)
    system = load_base(name).system(placement=place(device), part="base")
    options = {"num_steps": num_steps, "guidance_scale": guidance_scale, "seed": seed}
    images = sample_images(system, [prompt], scheduler=scheduler, **options)
    require_finite(images)
    with output(out) as temporary:
        Image.fromarray(to_uint8(images)[0]).save(temporary, format="PNG")
    typer.echo(str(out))


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="A folder under runs/.")],
    out: Annotated[Path | None, typer.Option("--out", help="Default reports/<run>.html.")] = None,
) -> None:
    """Write the HTML report of a run."""
    from sanakit.reporting import report_path, write_report

    out = out or report_path(run_dir)
    try_writing_files({"--out": out})
    typer.echo(str(write_report(run_dir, out)))


@app.command()
def compare(
    run_dirs: Annotated[list[Path], typer.Argument(help="Folders under runs/.")],
    html: Annotated[Path | None, typer.Option("--html", "--out", help="Also write a page, one file.")] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option("--scores", help="Also what `sanakit evaluate --out FILE` wrote, on the page; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """A leaderboard of runs: verdict first, then how near the base the one-step error comes."""
    from sanakit.cli.view import print_leaderboard
    from sanakit.reporting.compare import differing, leaderboard, write_comparison
    from sanakit.reporting.score_table import read_scores

    if scores and html is None:
        raise SanakitError("SK0104", "--scores belongs to the page", fix="Name the page: --html FILE.")
    try_writing_files({"--html": html})
    rows, scored = leaderboard(run_dirs), [read_scores(path) for path in scores or []]
    if html:
        write_comparison(rows, html, scored)
    if as_json:
        print_json(rows)
    else:
        print_leaderboard(rows, html, differing(rows))
