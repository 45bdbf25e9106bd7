"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sanakit.cli import completion
from sanakit.cli.exit_codes import FAILS
from sanakit.errors import SanakitError
from sanakit.limits import LARGEST_BATCH, LARGEST_COUNT, LARGEST_SECONDS, LARGEST_SEED
from sanakit.placement import HELP


def known_answer(text: str | None) -> str | None:
    """A key of FAILS, or None. Raises SK0104."""
    if text not in (None, *FAILS):
        raise SanakitError(
            "SK0104", f"--fail-on is {text!r}, expected {' or '.join(FAILS)}", fix="Leave it out, or write one of them."
        )
    return text


def known_progress(text: str) -> str:
    """auto or json. Raises SK0104."""
    if text not in ("auto", "json"):
        raise SanakitError(
            "SK0104", f"--progress is {text!r}, expected auto or json", fix="Leave it out, or write json."
        )
    return text


Sets = Annotated[list[str] | None, typer.Option("--set", help="key=value of the configuration, repeatable.")]

AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Allow a native .pth file to be read (tensors only); it is converted once."),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print validation.json on standard output, nothing else.")]

Seed = Annotated[int, typer.Option("--seed", min=0, max=LARGEST_SEED)]

Device = Annotated[str, typer.Option("--device", help=HELP)]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what every stage will need of device, host, disk and time, and stop.")
]

WorldSize = Annotated[
    int | None, typer.Option("--world-size", min=1, max=LARGEST_BATCH, help="With --dry-run: ranks of the run.")
]

NumSteps = Annotated[int, typer.Option("--num-steps", min=1, max=LARGEST_BATCH)]
GuidanceScale = Annotated[float, typer.Option("--guidance-scale", min=0)]

DeviceMemory = Annotated[
    str | None,
    typer.Option("--device-memory", help="With --dry-run: memory of the device, 24GB say; by default this machine's."),
]

NumImages = Annotated[
    int | None,
    typer.Option(
        "--num-images",
        min=1,
        max=LARGEST_COUNT,
        help="With --dry-run: images of the data, instead of counting --data.",
    ),
]

SecondsPerImage = Annotated[
    float | None,
    typer.Option(
        "--seconds-per-image",
        min=0,
        max=LARGEST_SECONDS,
        help="With --dry-run: of reading and decoding one image by a rank, instead of trying some of --data.",
    ),
]

RunDir = Annotated[Path | None, typer.Option("--run-dir", help="Where results go; default runs/<utc>-<slug>-<hash>.")]

FailOn = Annotated[
    str | None,
    typer.Option(
        "--fail-on",
        callback=known_answer,
        help="do-not or not-yet: exit code 1 where the decision is that, or worse, for CI.",
    ),
]

SecondsPerStep = Annotated[
    float | None,
    typer.Option(
        "--seconds-per-step",
        min=0,
        max=LARGEST_SECONDS,
        help="Of a training step where the full run is planned: hours of the dry run and of the decision.",
    ),
]

Verbose = Annotated[
    bool,
    typer.Option("--verbose", help="Also gates that passed, the plan, and what other libraries print."),
]

Quiet = Annotated[bool, typer.Option("--quiet", help="The six lines of the decision alone; no progress.")]

ProgressKind = Annotated[
    str,
    typer.Option(
        "--progress",
        callback=known_progress,
        help="auto; or json: one JSON object a line on standard error, for a program.",
    ),
]


def whole_or_auto(text: str) -> str:
    """A number of steps of at least 8, or auto; the configuration bounds it."""
    if text != "auto" and not (text.isdecimal() and len(text) < 20 and int(text) >= 8):
        raise typer.BadParameter(f"{text!r} is neither auto nor a whole number of at least 8")
    return text


Candidate = Annotated[
    str,
    typer.Option(
        "--candidate",
        help="A name of `sanakit ls`, `path:DIR` or `hub:owner/repo`.",
        autocompletion=completion.candidates,
    ),
]
BaseName = Annotated[
    str,
    typer.Option(
        "--base", help="The model that works today: a name, `path:` or `hub:`.", autocompletion=completion.bases
    ),
]
Data = Annotated[
    str, typer.Option("--data", help="A name, a folder of images with .txt captions, or a .csv/.jsonl manifest.")
]
Stages = Annotated[str, typer.Option("--stages", help="Comma-separated: component, smoke, full.")]
StrategyName = Annotated[
    str,
    typer.Option(
        "--strategy",
        help="`auto` races them; or one name of `sanakit ls strategies`.",
        autocompletion=completion.strategies,
    ),
]
Budget = Annotated[
    str,
    typer.Option(
        "--budget-steps",
        callback=whole_or_auto,
        help="Steps of every strategy at stage smoke, at least 8; `auto`: 50, doubled while the race cannot tell, "
        "at most "
        "smoke.max_budget_steps.",
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        min=0,
        max=LARGEST_SECONDS,
        help="Minutes of this command after which the race begins no step that would not fit.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Run later stages even when an earlier one failed.")]
PolicyName = Annotated[str, typer.Option("--policy", help="Thresholds of the gates: default, strict, or a YAML file.")]
Controls = Annotated[
    bool, typer.Option("--controls", help="naive and scratch race too; otherwise they are evaluated before any step.")
]


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
