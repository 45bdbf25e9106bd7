"""train: a configuration or a preset to a finished, watched, resumable run."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanakit.cli.app import app
from sanakit.cli.dry_run import needs_options, print_needs
from sanakit.cli.names import check_names, require_run, stage_to_resume
from sanakit.cli.options import (
    AsJson,
    Device,
    DeviceMemory,
    NumImages,
    PolicyName,
    ProgressKind,
    Quiet,
    RunDir,
    SecondsPerImage,
    SecondsPerStep,
    Sets,
    Verbose,
    WorldSize,
    place,
)
from sanakit.cli.output import print_json
from sanakit.cli.running import run
from sanakit.errors import SanakitError, did_you_mean
from sanakit.limits import LARGEST_SEED

if TYPE_CHECKING:
    from sanakit.config import Config

BYTES = (
    "weights",
    "gradients",
    "optimizer",
    "average",
    "activations",
    "communication",
    "peak",
    "checkpoint",
    "start_streams",
    "start_moments",
)


@app.command()
def train(
    config_file: Annotated[Path | None, typer.Option("--config", help="YAML configuration.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="pretrain, finetune, swap-vae, swap-text-encoder, joint-text-encoder, vae-finetune, vae-decoder or "
            "lora.",
        ),
    ] = None,
    set_: Sets = None,
    run_dir: RunDir = None,
    resume: Annotated[str, typer.Option("--resume", help="auto, never, or a checkpoint folder.")] = "auto",
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=LARGEST_SEED, help="train.seed.")] = None,
    report_to: Annotated[
        str | None, typer.Option("--report-to", help="Comma-separated: tensorboard, wandb, trackio, mlflow.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
    world_size: WorldSize = None,
    device_memory: DeviceMemory = None,
    seconds_per_step: SecondsPerStep = None,
    num_images: NumImages = None,
    seconds_per_image: SecondsPerImage = None,
    as_json: AsJson = False,
    device: Device = "auto",
    verbose: Verbose = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> None:
    """Stage full from a configuration: train, watched and resumable, and write the model.

    SIGTERM, SIGUSR1 and Ctrl-C save at the next step border (exit 143 or 130); the same command then goes on.
    """
    given: dict[str, Any] = {} if seed is None else {"seed": seed}
    given |= {} if report_to is None else {"report_to": [part.strip() for part in report_to.split(",")]}
    config = _configuration(config_file, preset, {"train": given}, set_)
    if resume not in ("auto", "never") and not Path(resume).is_dir():
        raise SanakitError("SK0505", f"--resume {resume!r} is not auto, never or a checkpoint folder")
    check_names(config)
    asked = needs_options(dry_run, world_size, device_memory, seconds_per_step, num_images, seconds_per_image)
    if asked is not None:
        if any(value is not None for name, value in asked.items() if name != "world_size"):
            print_needs(config, ["full"], device=device, run_dir=run_dir, as_json=as_json, **asked)
        else:
            if device != "auto":  # which needs no torch
                place(device, config)
            _print_configuration(config, world_size, as_json)
        return
    shown: dict[str, Any] = {"verbose": verbose, "quiet": quiet, "progress": progress}
    run(config, run_dir, ["full"], force=True, as_json=as_json, resume=resume, device=device, **shown)


def _configuration(
    config_file: Path | None, preset: str | None, given: dict[str, Any], sets: list[str] | None
) -> "Config":
    """Of a file or a preset; given: values of options, which --set replaces. Raises SK0104."""
    from sanakit.config import load_config, make_config
    from sanakit.config_fields import merged_values
    from sanakit.presets import PRESETS

    if config_file is not None and preset is None:
        return load_config(config_file, sets, given)
    if config_file is not None or preset is None:
        raise SanakitError("SK0104", "train takes either --config FILE or --preset NAME")
    if preset not in PRESETS:
        raise SanakitError(
            "SK0104", f"no preset {preset!r}{did_you_mean(preset, list(PRESETS))}; known: {', '.join(PRESETS)}"
        )
    return make_config(merged_values(PRESETS[preset]().model_dump(), given), sets)


def _print_configuration(config: "Config", world_size: int | None, as_json: bool) -> None:
    """The resolved configuration, and what a rank of `world_size` needs where that is asked."""
    from sanakit.config import dump_config

    needs = _needs(config, world_size) if world_size is not None else {}
    if as_json:
        print_json({"config": config.model_dump(mode="json")} | ({"estimate": needs} if needs else {}))
        return
    sys.stdout.write(dump_config(config))
    for name, value in needs.items():
        amount = f"{value / 2**20:,.1f} MiB" if name in BYTES else f"{value:,}"
        sys.stdout.write(f"# {name.replace('_', ' ')}: {amount}\n")


def _needs(config: "Config", world_size: int) -> dict[str, int]:
    """The estimate of a configuration: the base's config.json and card are read, none of its weights."""
    from sanakit.core.dit import saved_adapters
    from sanakit.training.estimate import estimate, fake_core

    if config.trains_vae_alone or config.text_encoder.learning_rate:
        raise SanakitError("SK0104", "--world-size estimates runs of the core alone", fix="Leave out --world-size.")
    from sanakit.loading import load_base, load_text_encoder, load_vae
    from sanakit.swap.early import decide_image_size
    from sanakit.swap.settings import options_of, strategy_of
    from sanakit.swap.start import start_needs
    from sanakit.text_encoders.query import with_layer

    base = load_base(config.base)
    config = decide_image_size(config, base.card["image_size"])
    try:
        shapes = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SanakitError("SK0106", f"{base.folder / 'config.json'}: {error}") from error
    own_vae = load_vae(base.card["vae"])
    vae = load_vae(config.vae.name) if config.vae.name else own_vae
    encoder = load_text_encoder(with_layer(config.text_encoder.name or base.card["text_encoder"], None))
    core, mode = fake_core(
        shapes,
        latents=vae.spec if config.vae.name else None,
        text=encoder.spec if config.text_encoder.name else None,
        adapters=saved_adapters(base.folder),
        adapter=config.adapter.name,
        base_ratio=own_vae.spec.spatial_compression_ratio,
        image_size=config.data.size,
    )
    strategy = strategy_of(config, {})
    shape = vae.spec.shape(config.data.size, config.data.size)
    needs = start_needs(config, core, shape, [strategy]) if config.candidate else {}
    estimated = estimate(
        core,
        mode,
        strategy,
        options_of(config, strategy, world_size),
        latent_shape=shape,
        caption_length=encoder.spec.max_tokens,
        world_size=world_size,
    )
    return estimated.as_dict() | needs


@app.command()
def resume(
    run_dir: Annotated[
        Path, typer.Argument(help="A folder under runs/ that was interrupted, or that has a stage left.")
    ],
    set_: Sets = None,
    as_json: AsJson = False,
    policy: PolicyName = "default",
    verbose: Verbose = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> None:
    """Go on with a run where it stopped: a stage that was interrupted, else the next one."""
    from sanakit.config import load_config

    require_run(run_dir)
    config = load_config(run_dir / "config.yaml", set_)
    options: dict[str, Any] = {"verbose": verbose, "quiet": quiet, "progress": progress, "policy": policy}
    run(config, run_dir, [stage_to_resume(run_dir)], force=False, as_json=as_json, **options)
