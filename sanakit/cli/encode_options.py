"""Options of `encode`."""

from typing import Annotated

import typer

from sanakit.cli.app import was_given
from sanakit.errors import SanakitError
from sanakit.limits import LARGEST_ASPECT, LARGEST_BATCH, LARGEST_SIDE

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]

ImageSize = Annotated[
    int | None, typer.Option("--image-size", min=16, max=LARGEST_SIDE, help="Pixels of a side; default the base's.")
]
Mirror = Annotated[bool, typer.Option("--mirror", help="Encode the mirrored image too, as training reads it.")]
AspectBuckets = Annotated[
    bool, typer.Option("--aspect-buckets", help="Also the sizes that training in aspect buckets reads.")
]
MaxAspect = Annotated[
    float, typer.Option("--max-aspect", min=1, max=LARGEST_ASPECT, help="data.max_aspect of that run.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, max=LARGEST_BATCH, help="train.batch_size of that run.")]
PatchSize = Annotated[int, typer.Option("--patch-size", min=1, max=64, help="Of that run's core.")]

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
    if not slash or not (_is_number(first) and _is_number(count)) or not 1 <= int(first) <= int(count):
        raise SanakitError("SK0104", f"--shard is {text!r}, expected I/N with I from 1 to N", fix="Write 3/8, say.")
    return int(first) - 1, int(count)


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


# options of `encode` by what they belong to: without it they would change nothing
OF_VAE = ("image_size", "base", "mirror", "fit", "vae_dtype")
OF_BUCKETS = ("max_aspect", "batch_size", "patch_size")


def refuse_without_effect(ctx: typer.Context) -> None:
    """Raises SK0104 for options that need another one, which was not given."""
    values = ctx.params
    if values["vae"] is None and values["text_encoder"] is None:
        raise SanakitError("SK0104", "encode needs --vae, --text-encoder or both")
    if values["aspect_buckets"] and values["vae"] is None:
        raise SanakitError("SK0104", "--aspect-buckets sort latents by the images' shapes: name a --vae")
    for needed, options in (("vae", OF_VAE), ("text_encoder", ("text_encoder_dtype",)), ("aspect_buckets", OF_BUCKETS)):
        given = [_option(name) for name in options if was_given(ctx, name)]
        if given and not values[needed]:
            told = f"{' and '.join(given)} without {_option(needed)}"
            fix = f"Leave {' and '.join(given)} out, or give {_option(needed)}."
            raise SanakitError("SK0104", f"{told} changes nothing", cause="The option would have no effect.", fix=fix)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
