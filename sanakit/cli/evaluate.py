"""evaluate: how good the images are that a model draws."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanakit.cli.app import app
from sanakit.cli.ending import try_writing_files
from sanakit.cli.names import model_named
from sanakit.cli.options import (
    AllowPickle,
    Data,
    Device,
    GuidanceScale,
    NumSteps,
    ProgressKind,
    Seed,
    convert_native,
    place,
)
from sanakit.cli.output import print_json, strict
from sanakit.errors import ExitCode
from sanakit.files import output
from sanakit.limits import LARGEST_BATCH, LARGEST_COUNT

if TYPE_CHECKING:
    from sanakit.api.evaluation import Evaluation

Metrics = Annotated[str, typer.Option("--metrics", help="Comma-separated names of `sanakit ls metrics`.")]


@app.command()
def evaluate(
    model: Annotated[str, typer.Option("--model", help="A run, RUN/model, a pipeline folder, or a base by name.")],
    data: Data = "embedded",
    metrics: Metrics = "kid,frechet,caption-recovery,diversity",
    count: Annotated[
        int, typer.Option("--count", min=8, max=LARGEST_COUNT, help="Held-out prompts, at most all of them.")
    ] = 64,
    num_seeds: Annotated[int, typer.Option("--num-seeds", min=1, max=LARGEST_BATCH, help="Samples of a prompt.")] = 2,
    seed: Seed = 0,
    num_steps: NumSteps = 24,
    guidance_scale: GuidanceScale = 3.0,
    features: Annotated[
        str,
        typer.Option(
            "--features",
            help="Comma-separated: efflite0 and thumbnail need no network (auto is both); inception, dino, clip, "
            "path:DIR or hub:owner/repo of timm.",
        ),
    ] = "auto",
    base_captions: Annotated[
        bool, typer.Option("--base-captions", help="The model reads captions_base, as the base of a swap does.")
    ] = False,
    clip: Annotated[
        str | None,
        typer.Option("--clip", help="The model of clip-score and clip-recovery: path:DIR or hub:owner/repo."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON document to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
    allow_pickle: AllowPickle = False,
    device: Device = "auto",
    progress: ProgressKind = "auto",
) -> None:
    """Draw images for held-out prompts and score them: distance to true images, prompts followed, variety."""
    name = model_named(model)
    try_writing_files({"--out": out})
    from sanakit.api.evaluation import evaluate as evaluate_system
    from sanakit.cli.progress import progress_of
    from sanakit.distributed import barrier, is_main
    from sanakit.evaluation.image_features import features_named
    from sanakit.evaluation.scores import require_metrics
    from sanakit.loading import load_base
    from sanakit.ranks.sharing import ranks_share

    names = [part.strip() for part in metrics.split(",") if part.strip()]
    options: dict[str, Any] = {"count": count, "num_seeds": num_seeds, "seed": seed, "num_steps": num_steps}
    options |= {"base_captions": base_captions}
    options |= {"guidance_scale": guidance_scale, "features": features} | ({} if clip is None else {"clip": clip})
    require_metrics(names, features_named(features), clip or _default_clip())
    if allow_pickle:
        convert_native(name)
    system = load_base(name).system(placement=place(device), part="base")
    with ranks_share(), progress_of(progress if is_main() else "none") as advance:
        evaluation = evaluate_system(system, data, names, on_step=advance, **options)
    barrier()
    if not is_main():
        raise typer.Exit
    _tell(evaluation, name, out, as_json)
    if evaluation.failed:
        raise typer.Exit(ExitCode.ERROR)


def _tell(evaluation: "Evaluation", name: str, out: Path | None, as_json: bool) -> None:
    record = {**evaluation.as_dict(), "model": name}
    if out is not None:
        with output(out) as temporary:
            temporary.write_text(json.dumps(strict(record), indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(record)
    else:
        _print(evaluation, name)


def _default_clip() -> str:
    from sanakit.evaluation.clip import DEFAULT_CLIP

    return DEFAULT_CLIP


def _print(evaluation: "Evaluation", name: str) -> None:
    """Short lines, a few a score: the value with its interval, what true images score, what to know."""
    from sanakit.cli.view import number_text

    count, seeds = len(evaluation.prompts), evaluation.num_seeds
    typer.echo(f"{name}\n{count} held-out prompts of {evaluation.data}, {seeds} samples each")
    for score in evaluation.scores:
        if score.error:
            typer.secho(f"{score.metric}: could not be evaluated", fg="red")
            typer.echo(f"  {score.code}: {score.error}")
            continue
        value, low, high = (number_text(one, ".4g") for one in (score.value, score.ci_low, score.ci_high))
        side = f", {score.better} is better" if score.better else ""
        typer.echo(f"{score.label}  {value}  [{low} to {high}]{side}")
        if score.of_true_images is not None:
            typer.echo(f"  true images: {number_text(score.of_true_images, '.4g')}")
        if score.note:
            typer.echo(f"  {score.note}")
