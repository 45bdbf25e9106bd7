"""How a run of stages ends: what is shown, and the exit code."""

from pathlib import Path
from typing import Any

from sanakit.cli.exit_codes import exit_code_of
from sanakit.errors import SanakitError
from sanakit.files import cache_dir, require_utf8, try_writing

__all__ = ["exit_code_of", "refuse_folders", "show_result", "try_writing_files"]


def show_result(validation: dict[str, Any], run_folder: Any, report: Path, *, verbose: bool, quiet: bool) -> None:
    """The decision, then tables; the plan when verbose."""
    from sanakit.cli.verdict_view import print_plan, print_validation

    print_validation(validation, run_folder.path, report, verbose=verbose, quiet=quiet)
    if verbose and (plan := run_folder.read_json("plan.json")):
        print_plan(plan)


def refuse_folders(files: dict[str, Path | None]) -> None:
    for option, path in files.items():
        if path is not None and path.is_dir():
            raise SanakitError("SK0104", f"{option} {path} is a folder, expected a file to write")


def try_writing_files(files: dict[str, Path | None]) -> None:
    """Files that a command writes at its end, by their option, before anything long begins. Raises SK0104 or SK0903."""
    refuse_folders(files)
    for path in files.values():
        if path is not None:
            try_writing(path.parent)


def try_writing_all(run_dir: Path | None, *documents: Path | None) -> None:
    """Every folder that the command will write to, before anything long begins. Raises SK0104, SK0903 or SK0128."""
    if run_dir is not None:
        require_utf8(run_dir, "--run-dir")
    for folder in (run_dir or Path("runs"), *(path.parent for path in documents if path), cache_dir()):
        try_writing(folder)
