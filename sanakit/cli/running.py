"""Runs the stages of a configuration, on one process or as one of several ranks, and ends with their exit code."""

import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import typer

from sanakit.cli.ending import exit_code_of, show_result, try_writing_files, try_writing_folders
from sanakit.cli.exit_codes import unevaluated_gates
from sanakit.cli.options import place
from sanakit.cli.output import print_json


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
    fail_on: str | None = None,
    seconds_per_step: float | None = None,
    verbose: bool = False,
    quiet: bool = False,
    progress: str = "auto",
) -> None:
    """Only rank 0 writes and speaks; where another rank is lost, one of those that are left does."""
    from sanakit.checks.policy import gate_names, load_policy
    from sanakit.distributed import STOP, barrier, is_main, rank_folder
    from sanakit.ranks.lost import EndsQuietly, watched_ranks
    from sanakit.ranks.sharing import ranks_share
    from sanakit.tracebacks import kept_in

    try_writing_folders(run_dir)
    gate_policy = load_policy(policy, gate_names())
    try_writing_files({"--junit": junit, "--markdown": markdown})
    if not is_main():
        warnings.simplefilter("ignore")  # rank 0 has the same ones
    shown: dict[str, Any] = {"as_json": as_json, "quiet": quiet or not is_main(), "progress": progress}
    asked: dict[str, Any] = {"policy": gate_policy, "device": device, "seconds_per_step": seconds_per_step}
    asked |= {"force": force, "resume": resume}
    try:
        with STOP.installed(), watched_ranks(run_dir), rank_folder(run_dir) as folder, ranks_share():
            swap, validation = _run_stages(config, run_dir, folder, stages, asked, shown)
    except EndsQuietly as ending:
        raise typer.Exit(ending.exit_code) from ending
    if not is_main():
        barrier()  # torchrun ends every rank when the first one fails: rank 0 speaks, and goes first
        raise typer.Exit
    with kept_in(swap.run.path):
        from sanakit.reporting import report_path, write_report

        report = write_report(swap.run.path, report_path(swap.run.path))
    _write_for_ci(validation, junit, markdown)
    if as_json:
        print_json(validation)
        for gate in unevaluated_gates(validation):
            print(f"error[{gate['code']}]: {gate['gate']} could not be evaluated: {gate['error']}", file=sys.stderr)
    else:
        show_result(validation, swap.run, report, verbose=verbose, quiet=quiet)
    barrier()
    raise typer.Exit(exit_code_of(validation, fail_on))


def _run_stages(
    config: Any,
    run_dir: Path | None,
    folder: Path | None,
    stages: list[str],
    asked: dict[str, Any],
    shown: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """The swap and its validation. folder: where this rank keeps its run, run_dir or a scratch copy of it."""
    from sanakit.cli.progress import progress_of
    from sanakit.cli.view import print_data
    from sanakit.distributed import is_main
    from sanakit.swap import stages as engine
    from sanakit.swap.memory_advice import advise
    from sanakit.tracebacks import kept_in, memory_advice

    placement = place(asked["device"], config)
    known = bool(run_dir and (run_dir / "config.yaml").is_file())
    with progress_of("none" if shown["quiet"] else shown["progress"]) as advance, kept_in(run_dir if known else None):
        swap = engine.prepare(config, folder, advance, asked["policy"], stages, placement)
        swap.seconds_per_step = asked["seconds_per_step"]
        if not shown["quiet"]:
            print_data(swap.images, swap.run.path, buckets=config.data.aspect_buckets, as_json=shown["as_json"])
        traces = swap.run.path if is_main() else run_dir  # other ranks' folders are scratch
        with kept_in(traces), swap.run.locked(is_main()), memory_advice(partial(advise, swap.config)):
            return swap, engine.run_stages(swap, stages, force=asked["force"], resume=asked["resume"])


def _write_for_ci(validation: dict[str, Any], junit: Path | None, markdown: Path | None) -> None:
    from sanakit.reporting.ci import write_junit, write_markdown

    for write, path in ((write_junit, junit), (write_markdown, markdown)):
        if path:
            write(validation, path)
