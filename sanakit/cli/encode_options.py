"""Options of `encode`."""

from typing import Annotated

import typer

from sanakit.errors import SanakitError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]

ImageSize = Annotated[int | None, typer.Option("--image-size", min=16, help="Pixels of a side; default the base's.")]

VAEDtype = Annotated[str, typer.Option("--vae-dtype", help="vae.dtype of that run: auto, fp32, bf16 or fp16.")]
TextEncoderDtype = Annotated[
    str, typer.Option("--text-encoder-dtype", help="text_encoder.dtype of that run: auto, fp32, bf16 or fp16.")
]

Shard = Annotated[
    str | None,
    typer.Option("--shard", help="I/N: encode the I-th of N shares, as one job of an array; the last one finishes."),
]

Fit = Annotated[
    str | None,
    typer.Option("--fit", help="data.fit of that run: crop or pad; default the data set's own, or crop."),
]
Captions = Annotated[str, typer.Option("--captions", help="data.captions of that run: lines or whole caption files.")]


def share_of(text: str | None) -> tuple[int, int] | None:
    """I/N, I from 1 to N, counted from 0. Raises SK0104."""
    if text is None:
        return None
    first, slash, count = text.partition("/")
    if not slash or not first.isdigit() or not count.isdigit() or not 1 <= int(first) <= int(count):
        raise SanakitError("SK0104", f"--shard is {text!r}, expected I/N with I from 1 to N, for example 3/8")
    return int(first) - 1, int(count)
