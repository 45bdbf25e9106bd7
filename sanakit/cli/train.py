"""train: a configuration or a preset to a finished, watched, resumable run."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.app import app
from sanakit.cli.swap import AsJson, RunDir, Sets, check_names, run
from sanakit.errors import SanakitError, did_you_mean


@app.command()
def train(
    config_file: Annotated[Path | None, typer.Option("--config", help="YAML configuration.")] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="pretrain, finetune, swap-vae, swap-text-encoder or lora.")
    ] = None,
    set_: Sets = None,
    run_dir: RunDir = None,
    resume: Annotated[str, typer.Option("--resume", help="auto, never, or a checkpoint folder.")] = "auto",
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="train.seed.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stage full from a configuration: train, watched and resumable, and write the model.

    SIGTERM, SIGUSR1 and Ctrl-C save at the next step border (exit 143 or 130); the same command then goes on.
    """
    from sanakit.config import dump_config, load_config, make_config
    from sanakit.presets import PRESETS

    if (config_file is None) == (preset is None):
        raise SanakitError("SK0104", "train takes either --config FILE or --preset NAME")
    if preset is not None and preset not in PRESETS:
        raise SanakitError(
            "SK0104", f"no preset {preset!r}{did_you_mean(preset, list(PRESETS))}; known: {', '.join(PRESETS)}"
        )
    sets = [*(set_ or []), *([] if seed is None else [f"train.seed={seed}"])]
    config = load_config(config_file, sets) if config_file else make_config(PRESETS[str(preset)]().model_dump(), sets)
    if resume not in ("auto", "never") and not Path(resume).is_dir():
        raise SanakitError("SK0505", f"--resume {resume!r} is not auto, never or a checkpoint folder")
    check_names(config)
    if dry_run:
        sys.stdout.write(dump_config(config))
        return
    run(config, run_dir, ["full"], force=True, as_json=as_json, resume=resume)
