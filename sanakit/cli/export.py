"""export: a run's model as a diffusers pipeline folder."""

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.app import app
from sanakit.cli.output import print_json
from sanakit.files import try_writing


@app.command()
def export(
    run_dir: Annotated[Path, typer.Option("--run-dir", help="A run folder that went through stage full.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; new or empty.")],
    push_to_hub: Annotated[
        str | None, typer.Option("--push-to-hub", help="owner/repo; private where it is new.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Write a diffusers pipeline folder: stock where SanaPipeline renders the same, else under sanakit's class."""
    from sanakit.hub import push
    from sanakit.interop.card import licences, model_card, read_run
    from sanakit.interop.export import export_pipeline, refuse_full
    from sanakit.loading import load_base

    run = read_run(run_dir)
    refuse_full(out)
    try_writing(out)
    system = load_base(f"path:{run_dir / 'model'}").system()
    reasons = export_pipeline(
        out,
        core=system.core,
        vae=system.vae,
        text_encoder=system.text_encoder,
        image_size=system.image_size,
        flow_shift=float(system.flow_shift or 1.0),
        licence="; ".join(f"{part} {licence}" for part, licence in licences(run).items()),
        lora=run_dir / "lora",
        card=lambda reasons: model_card(run, reasons),
    )
    pushed = push(out, push_to_hub) if push_to_hub else None
    name = "SanakitPipeline" if reasons else "SanaPipeline"
    if as_json:
        print_json({"out": str(out), "class": name, "stock": not reasons, "reasons": reasons, "pushed": pushed})
        return
    typer.echo(f"{out}  {name}")
    for reason in reasons:
        typer.echo(f"  not stock: {reason}")
    if pushed:
        typer.echo(f"  pushed to {pushed}")
