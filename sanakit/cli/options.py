"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sanakit.placement import HELP

Sets = Annotated[list[str] | None, typer.Option("--set", help="key=value of the configuration, repeatable.")]

AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Allow a native .pth file to be read (tensors only); it is converted once."),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print validation.json on standard output, nothing else.")]

Seed = Annotated[int, typer.Option("--seed", min=0)]

Device = Annotated[str, typer.Option("--device", help=HELP)]

RunDir = Annotated[Path | None, typer.Option("--run-dir", help="Where results go; default runs/<utc>-<slug>-<hash>.")]


def place(device: str, config: Any = None) -> Any:
    """The placement that `--device` and a configuration's dtypes ask for."""
    from sanakit.placement import choose

    if config is None:
        return choose(device)
    return choose(device, vae=config.vae.dtype, text_encoder=config.text_encoder.dtype, base=config.base_dtype)


def convert_native(base: str) -> None:
    from sanakit.files import cache_dir
    from sanakit.formats.native import convert_base

    convert_base(base, cache_dir())
