"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Sets = Annotated[list[str] | None, typer.Option("--set", help="key=value of the configuration, repeatable.")]

AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Allow a native .pth file to be read (tensors only); it is converted once."),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print validation.json on standard output, nothing else.")]

Seed = Annotated[int, typer.Option("--seed", min=0)]

RunDir = Annotated[Path | None, typer.Option("--run-dir", help="Where results go; default runs/<utc>-<slug>-<hash>.")]


def convert_native(base: str) -> None:
    from sanakit.files import cache_dir
    from sanakit.formats.native import convert_base

    convert_base(base, cache_dir())
