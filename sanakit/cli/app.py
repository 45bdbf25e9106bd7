"""The typer application that command modules add to."""

import math
import os
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from sanakit import __version__
from sanakit.errors import SanakitError
from sanakit.files import require_name
from sanakit.tracebacks import stops

TEXTS = ("prompt",)  # parameters that are no name: an empty text is a text


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


class Command(TyperCommand):
    """Refuses an empty text where a name or a path belongs, and a number that is not finite. An empty path would be the
    working folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        written, *_ = self.make_parser(ctx).parse_args(list(args))
        rest: list[str] = super().parse_args(ctx, args)
        for parameter in self.params if not ctx.resilient_parsing else ():
            name = str(parameter.name)
            label = parameter.opts[0] if parameter.opts[0].startswith("-") else name.upper().rstrip("_")
            values = written.get(name)
            for value in values if isinstance(values, list | tuple) else [values]:
                if isinstance(value, str) and name not in TEXTS:
                    require_name(value, label)
            number = ctx.params.get(name)
            if isinstance(number, float) and not math.isfinite(number):
                raise SanakitError("SK0104", f"{label} is {number}, expected a finite number", fix="Give a number.")
        return rest


class Application(typer.Typer):
    """A typer application whose commands are ours."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        return super().command(name, **{"cls": Command, **options})


def was_given(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter of the command was written down, not taken from its default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


app = Application(
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
