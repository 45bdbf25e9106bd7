"""new: a plugin as a small package, with a contract test that passes."""

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.app import app
from sanakit.scaffold import KINDS, write_plugin


def kinds(incomplete: str) -> list[str]:
    """Kinds of plugins that begin so."""
    return [kind for kind in KINDS if kind.startswith(incomplete)]


@app.command("new")
def new_plugin(
    kind: Annotated[
        str,
        typer.Argument(help=", ".join(KINDS), autocompletion=kinds),
    ],
    name: Annotated[str, typer.Argument(help="Small letters, digits, hyphens; of a gate also STAGE/NAME.")],
    out: Annotated[Path | None, typer.Option("--out", help="A folder that does not exist; default NAME here.")] = None,
) -> None:
    """Write a plugin: a package with one module, its entry point and a contract test that passes."""
    folder = write_plugin(kind, name, out)
    typer.echo(f"{folder}\n  next: pip install -e '{folder}[test]' && pytest {folder}")
