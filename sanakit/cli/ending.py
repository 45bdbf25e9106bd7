"""How a run of stages ends: what is shown, and the exit code."""

from pathlib import Path
from typing import Any

from sanakit.cli.exit_codes import exit_code_of
from sanakit.files import cache_dir, file_to_write, require_utf8, try_writing

__all__ = ["exit_code_of", "show_result", "try_writing_files"]


def show_result(validation: dict[str, Any], run_folder: Any, report: Path, *, verbose: bool, quiet: bool) -> None:
    """The decision, then tables; the plan when verbose."""
    from sanakit.cli.verdict_view import print_plan, print_validation

    print_validation(validation, run_folder.path, report, verbose=verbose, quiet=quiet)
    if verbose and (plan := run_folder.read_json("plan.json", {})):
        print_plan(plan)


def try_writing_files(files: dict[str, Path | None]) -> None:
    """Files that a command writes at its end, by their option, before anything long begins. Raises SK0104 or SK0903."""
    for folder in [file_to_write(path, option).parent for option, path in files.items() if path is not None]:
        try_writing(folder)


def try_writing_folders(run_dir: Path | None) -> None:
    """Every folder that a run will write to, before anything long begins. Raises SK0104, SK0903 or SK0128."""
    if run_dir is not None:
        require_utf8(run_dir, "--run-dir")
    for folder in (run_dir or Path("runs"), cache_dir()):
        try_writing(folder)
