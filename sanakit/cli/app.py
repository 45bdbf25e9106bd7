"""The typer application that command modules add to."""

import os
from typing import Any

import typer
from typer.core import TyperGroup

from sanakit import __version__
from sanakit.tracebacks import stops


class Unforeseen(Exception):
    """Carries, as its cause, an error that typer would end with exit code 1, which means that a gate failed."""


class Commands(TyperGroup):
    """EOFError, a broken pipe, the `sys.exit` of a library and a question without an answer reach `main` as they
    are."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (EOFError, BrokenPipeError, typer.Abort) as error:
            raise Unforeseen from error
        except SystemExit as error:
            if stops(error):
                raise
            error.raised_inside = True  # type: ignore[attr-defined]
            raise Unforeseen from error


app = typer.Typer(
    cls=Commands,
    help="Swap the text encoder or the VAE of a Sana-family model, and know what happens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # None: colour on a terminal only; see no-color.org
    context_settings={"color": False if os.environ.get("NO_COLOR") else None},
)


@app.callback(invoke_without_command=True)
def version(show: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if show:
        typer.echo(f"sanakit {__version__}")
        raise typer.Exit()
