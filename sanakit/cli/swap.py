"""swap-vae, swap-text-encoder, validate, sample, report: parse, call, print."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sanakit.cli.app import app
from sanakit.cli.exit_codes import exit_code_of, unevaluated_gates
from sanakit.cli.options import AllowPickle, AsJson, Device, RunDir, Seed, Sets, convert_native, place
from sanakit.cli.output import print_json
from sanakit.errors import SanakitError
from sanakit.files import cache_dir, require_utf8


def whole_or_auto(text: str) -> str:
    """A number of steps of at least 8, or auto."""
    if text != "auto" and not (text.isdecimal() and int(text) >= 8):
        raise typer.BadParameter(f"{text!r} is neither auto nor a whole number of at least 8")
    return text


Candidate = Annotated[str, typer.Option("--candidate", help="A name of `sanakit ls`, `path:DIR` or `hub:owner/repo`.")]
BaseName = Annotated[str, typer.Option("--base", help="The model that works today: a name, `path:` or `hub:`.")]
Data = Annotated[
    str, typer.Option("--data", help="A name, a folder of images with .txt captions, or a .csv/.jsonl manifest.")
]
Stages = Annotated[str, typer.Option("--stages", help="Comma-separated: component, smoke, full.")]
StrategyName = Annotated[
    str, typer.Option("--strategy", help="`auto` races them; or one name of `sanakit ls strategies`.")
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
        "--time-limit", min=0, help="Minutes of this command after which the race begins no step that would not fit."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Run later stages even when an earlier one failed.")]
PolicyName = Annotated[str, typer.Option("--policy", help="Thresholds of the gates: default, strict, or a YAML file.")]
Controls = Annotated[
    bool, typer.Option("--controls", help="naive and scratch race too; otherwise they are evaluated before any step.")
]
DEFAULT_STAGES = "component,smoke"


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
) -> None:
    """Replace the VAE: component baseline, race of strategies, full run."""
    if allow_pickle:
        convert_native(base)
    values = _values(base, data, strategy, controls, seed, budget_steps, time_limit) | {"vae": {"name": candidate}}
    _swap(values, set_, stages, run_dir, force, as_json, policy, device)


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
) -> None:
    """Replace the text encoder: component baseline, race of strategies, full run."""
    if allow_pickle:
        convert_native(base)
    values = _values(base, data, strategy, controls, seed, budget_steps, time_limit) | {
        "text_encoder": {"name": candidate}
    }
    _swap(values, set_, stages, run_dir, force, as_json, policy, device)


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
    policy: str,
    device: str,
) -> None:
    from sanakit.config import make_config

    chosen = _stages(stages)
    config = make_config(values, sets)
    check_names(config)
    run(config, run_dir, chosen, force=force, as_json=as_json, policy=policy, device=device)


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


def check_names(config: Any) -> None:
    """Misspelt names and a cache that cannot be written are refused before anything heavy is imported or a run folder
    is made."""
    from sanakit.registry import Registry

    cache_dir()
    for kind, name in (
        ("vaes", config.vae.name),
        ("text-encoders", config.text_encoder.name),
        ("adapters", config.adapter.name),
        ("strategies", None if config.train.strategy == "auto" else config.train.strategy),
    ):
        name = name.partition("?")[0] if name and kind == "text-encoders" else name
        if name and name.partition(":")[0] not in ("path", "hub"):
            registry: Registry[Any] = Registry(kind)
            if name not in registry.entries():
                registry.get(name)  # raises with suggestions


def run(
    config: Any,
    run_dir: Path | None,
    stages: list[str],
    *,
    force: bool,
    as_json: bool,
    junit: Path | None = None,
    markdown: Path | None = None,
    policy: str = "default",
    resume: str = "auto",
    device: str = "auto",
) -> None:
    from sanakit.checks.policy import gate_names, load_policy
    from sanakit.distributed import STOP, barrier, is_main, rank_folder
    from sanakit.tracebacks import kept_in

    if run_dir is not None:
        require_utf8(run_dir, "--run-dir")
    gate_policy = load_policy(policy, gate_names())
    for option, path in (("--junit", junit), ("--markdown", markdown)):
        if path is not None and path.is_dir():
            raise SanakitError("SK0104", f"{option} {path} is a folder, expected a file to write")

    with STOP.installed(), rank_folder(run_dir) as folder:
        from sanakit.cli.view import print_data, print_plan, print_validation, progress_display
        from sanakit.reporting import write_report
        from sanakit.reporting.ci import write_junit, write_markdown
        from sanakit.swap import stages as engine

        placement = place(device, config)
        known = run_dir if run_dir and (run_dir / "config.yaml").is_file() else None
        with progress_display() as progress, kept_in(known):
            swap = engine.prepare(config, folder, progress, gate_policy, placement)
            if is_main():
                print_data(swap.images, swap.run.path, buckets=config.data.aspect_buckets, as_json=as_json)
            with kept_in(swap.run.path if is_main() else run_dir):  # other ranks' folders are scratch
                validation = engine.run_stages(swap, stages, force=force, resume=resume)
    if not is_main():
        barrier()  # torchrun ends every rank when the first one fails: rank 0 speaks, and goes first
        raise typer.Exit
    run_path = swap.run.path
    with kept_in(run_path):
        report = write_report(run_path, Path("reports") / f"{run_path.name}.html")
    if junit:
        write_junit(validation, junit)
    if markdown:
        write_markdown(validation, markdown)
    if as_json:
        print_json(validation)
        for gate in unevaluated_gates(validation):
            print(f"error[{gate['code']}]: {gate['gate']} could not be evaluated: {gate['error']}", file=sys.stderr)
    else:
        if plan := swap.run.read_json("plan.json"):
            print_plan(plan)
        print_validation(validation, run_path, report)
    barrier()
    raise typer.Exit(exit_code_of(validation))


@app.command()
def validate(
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
) -> None:
    """Run one stage, of a run folder or of a named pair; without a candidate the base validates itself."""
    from sanakit.config import load_config, make_config

    chosen = _stages(stage)
    sets = ["smoke.controls=true"] if controls else []
    sets += [f"smoke.time_limit={time_limit}"] if time_limit is not None else []
    sets += set_ or []
    if allow_pickle:
        convert_native(base)
    if vae and text_encoder:
        raise SanakitError("SK0104", "a swap replaces one component, found both --vae and --text-encoder")
    if run_dir is not None and (run_dir / "config.yaml").is_file():
        config = load_config(run_dir / "config.yaml", sets)
    else:
        values = {
            "base": base,
            "data": {"source": data},
            "train": {"seed": seed},
            "vae": {"name": vae},
            "text_encoder": {"name": text_encoder},
        }
        config = make_config(values, sets)
    check_names(config)
    written = {"junit": junit, "markdown": markdown}
    run(config, run_dir, chosen, force=force, as_json=as_json, policy=policy, device=device, **written)
