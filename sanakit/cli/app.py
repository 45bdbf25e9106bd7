"""The typer application that command modules add to."""

import os

import typer

from sanakit import __version__

app = typer.Typer(
    help="Swap the text encoder or the VAE of a Sana-family model, and know what happens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # None: colour on a terminal only; see no-color.org
    context_settings={"color": False if os.environ.get("NO_COLOR") else None},
)


@app.callback(invoke_without_command=True)
def version(show: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if show:
        typer.echo(f"sanakit {__version__}")
        raise typer.Exit()
