"""swap-vae, swap-text-encoder, validate, sample, report: parse, call, print."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sanakit.cli.app import app, was_given
from sanakit.cli.dry_run import needs_options, print_needs
from sanakit.cli.names import check_names, require_run
from sanakit.cli.options import (
    AllowPickle,
    AsJson,
    BaseName,
    Budget,
    Candidate,
    Controls,
    Data,
    Device,
    DeviceMemory,
    DryRun,
    FailOn,
    Force,
    NumImages,
    PolicyName,
    ProgressKind,
    Quiet,
    RunDir,
    SecondsPerImage,
    SecondsPerStep,
    Seed,
    Sets,
    Stages,
    StrategyName,
    TimeLimit,
    Verbose,
    WorldSize,
    convert_native,
)
from sanakit.cli.running import run
from sanakit.errors import SanakitError

DEFAULT_STAGES = "component,smoke"
OF_VALIDATE = {  # the key that an option of `validate` sets
    "data": "data.source",
    "seed": "train.seed",
    "vae": "vae.name",
    "text_encoder": "text_encoder.name",
    "controls": "smoke.controls",
    "time_limit": "smoke.time_limit",
}


@app.command("swap-vae")
def swap_vae(
    candidate: Candidate,
    base: BaseName = "tiny-sana",
    data: Data = "embedded",
    stages: Stages = DEFAULT_STAGES,
    strategy: StrategyName = "auto",
    budget_steps: Budget = "auto",
    time_limit: TimeLimit = None,
    controls: Controls = False,
    run_dir: RunDir = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    force: Force = False,
    set_: Sets = None,
    allow_pickle: AllowPickle = False,
    policy: PolicyName = "default",
    device: Device = "auto",
    fail_on: FailOn = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
    dry_run: DryRun = False,
    world_size: WorldSize = None,
    device_memory: DeviceMemory = None,
    seconds_per_step: SecondsPerStep = None,
    num_images: NumImages = None,
    seconds_per_image: SecondsPerImage = None,
) -> None:
    """Replace the VAE: component baseline, race of strategies, full run."""
    if allow_pickle:
        convert_native(base)
    values = _values(base, data, strategy, controls, seed, budget_steps, time_limit) | {"vae": {"name": candidate}}
    asked = needs_options(
        dry_run, world_size, device_memory, seconds_per_step if dry_run else None, num_images, seconds_per_image
    )
    options = {"policy": policy, "device": device, "fail_on": fail_on, "seconds_per_step": seconds_per_step}
    options |= {"verbose": verbose, "quiet": quiet, "progress": progress}
    _swap(values, set_, stages, run_dir, force, as_json, options, asked)


@app.command("swap-text-encoder")
def swap_text_encoder(
    candidate: Candidate,
    base: BaseName = "tiny-sana",
    data: Data = "embedded",
    stages: Stages = DEFAULT_STAGES,
    strategy: StrategyName = "auto",
    budget_steps: Budget = "auto",
    time_limit: TimeLimit = None,
    controls: Controls = False,
    run_dir: RunDir = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    force: Force = False,
    set_: Sets = None,
    allow_pickle: AllowPickle = False,
    policy: PolicyName = "default",
    device: Device = "auto",
    fail_on: FailOn = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
    dry_run: DryRun = False,
    world_size: WorldSize = None,
    device_memory: DeviceMemory = None,
    seconds_per_step: SecondsPerStep = None,
    num_images: NumImages = None,
    seconds_per_image: SecondsPerImage = None,
) -> None:
    """Replace the text encoder: component baseline, race of strategies, full run."""
    if allow_pickle:
        convert_native(base)
    values = _values(base, data, strategy, controls, seed, budget_steps, time_limit) | {
        "text_encoder": {"name": candidate}
    }
    asked = needs_options(
        dry_run, world_size, device_memory, seconds_per_step if dry_run else None, num_images, seconds_per_image
    )
    options = {"policy": policy, "device": device, "fail_on": fail_on, "seconds_per_step": seconds_per_step}
    options |= {"verbose": verbose, "quiet": quiet, "progress": progress}
    _swap(values, set_, stages, run_dir, force, as_json, options, asked)


def _values(
    base: str, data: str, strategy: str, controls: bool, seed: int, budget: str, time_limit: float | None
) -> dict[str, Any]:
    return {
        "base": base,
        "data": {"source": data},
        "train": {"strategy": strategy, "seed": seed},
        "smoke": {
            "budget_steps": budget if budget == "auto" else int(budget),
            "controls": controls,
            "time_limit": time_limit,
        },
    }


def _swap(
    values: dict[str, Any],
    sets: list[str] | None,
    stages: str,
    run_dir: Path | None,
    force: bool,
    as_json: bool,
    options: dict[str, Any],
    asked: dict[str, Any] | None,
) -> None:
    from sanakit.checks.policy import gate_names, load_policy
    from sanakit.config import make_config

    chosen = _stages(stages)
    config = make_config(values, sets)
    check_names(config)
    if asked is not None:
        load_policy(options["policy"], gate_names())
        print_needs(config, chosen, device=options["device"], run_dir=run_dir, as_json=as_json, **asked)
        return
    run(config, run_dir, chosen, force=force, as_json=as_json, **options)


def _stages(text: str) -> list[str]:
    from sanakit.errors import did_you_mean

    known = ["component", "smoke", "full"]
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    for stage in chosen:
        if stage not in known:
            raise SanakitError("SK0104", f"no stage {stage!r}{did_you_mean(stage, known)}; known: {', '.join(known)}")
    if not chosen:
        raise SanakitError("SK0104", "--stages names no stage")
    return chosen


def _given(ctx: typer.Context) -> dict[str, Any]:
    """Values of the configuration by the options of `validate` that were given; a candidate takes the place of one of
    the other kind."""
    values: dict[str, Any] = {"base": ctx.params["base"]} if was_given(ctx, "base") else {}
    for option, key in OF_VALIDATE.items():
        if was_given(ctx, option):
            section, _, name = key.partition(".")
            values.setdefault(section, {})[name] = ctx.params[option]
    candidates: dict[str, Any] = {"vae": {"name": None}, "text_encoder": {"name": None}}
    return candidates | values if values.keys() & candidates.keys() else values


@app.command()
def validate(
    ctx: typer.Context,
    stage: Annotated[str, typer.Option("--stage", help="component, smoke or full.")],
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="Go on with a run folder.")] = None,
    base: Annotated[
        str, typer.Option("--base", help="The model that works today; `none`: the component alone, stage component.")
    ] = "tiny-sana",
    vae: Annotated[str | None, typer.Option("--vae", help="Candidate VAE.")] = None,
    text_encoder: Annotated[str | None, typer.Option("--text-encoder", help="Candidate text encoder.")] = None,
    data: Data = "embedded",
    seed: Seed = 0,
    as_json: AsJson = False,
    junit: Annotated[Path | None, typer.Option("--junit", help="Also write JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Also write a summary for CI.")] = None,
    policy: PolicyName = "default",
    force: Force = False,
    controls: Controls = False,
    time_limit: TimeLimit = None,
    set_: Sets = None,
    allow_pickle: AllowPickle = False,
    device: Device = "auto",
    fail_on: FailOn = None,
    seconds_per_step: SecondsPerStep = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> None:
    """Run one stage, of a run folder or of a named pair; without a candidate the base validates itself."""
    from sanakit.config import load_config, make_config

    chosen = _stages(stage)
    if vae and text_encoder:
        raise SanakitError("SK0104", "a swap replaces one component, found both --vae and --text-encoder")
    if run_dir is not None and not (vae or text_encoder):
        require_run(run_dir)
    if run_dir is not None and (run_dir / "config.yaml").is_file():
        config = load_config(run_dir / "config.yaml", set_, _given(ctx))
    else:
        config = make_config(_given(ctx), set_)
    if allow_pickle:
        convert_native(config.base)
    check_names(config)
    options: dict[str, Any] = {"policy": policy, "device": device, "fail_on": fail_on}
    options |= {"seconds_per_step": seconds_per_step, "junit": junit, "markdown": markdown}
    options |= {"verbose": verbose, "quiet": quiet, "progress": progress}
    run(config, run_dir, chosen, force=force, as_json=as_json, **options)
