"""How a run of stages ends: what is shown, and the exit code."""

from pathlib import Path
from typing import Any

from sanakit.errors import ExitCode, SanakitError

FAILS: dict[str, tuple[str, ...]] = {"do-not": ("do-not",), "not-yet": ("do-not", "not-yet")}


def show_result(validation: dict[str, Any], run_folder: Any, report: Path, *, verbose: bool, quiet: bool) -> None:
    """The decision, then tables; the plan when verbose."""
    from sanakit.cli.verdict_view import print_plan, print_validation

    print_validation(validation, run_folder.path, report, verbose=verbose, quiet=quiet)
    if verbose and (plan := run_folder.read_json("plan.json")):
        print_plan(plan)


def refuse_options(fail_on: str | None, progress: str, files: dict[str, Path | None]) -> None:
    if progress not in ("auto", "json"):
        raise SanakitError("SK0104", f"--progress is {progress!r}, expected auto or json")
    if fail_on not in (None, *FAILS):
        raise SanakitError("SK0104", f"--fail-on is {fail_on!r}, expected {' or '.join(FAILS)}")
    for option, path in files.items():
        if path is not None and path.is_dir():
            raise SanakitError("SK0104", f"{option} {path} is a folder, expected a file to write")


def broken_gates(validation: dict[str, Any]) -> list[dict[str, Any]]:
    return [gate for stage in validation["stages"].values() for gate in stage["gates"] if gate.get("error")]


def exit_code_of(validation: dict[str, Any], fail_on: str | None = None) -> int:
    """The verdict's; 5 where something could not be evaluated because it raised: it is in the table, with the verdict
    of everything else. fail_on: 1 where the decision's answer is that, or worse."""
    if broken_gates(validation):
        return ExitCode.ERROR
    if fail_on and validation["decision"]["answer"] in FAILS[fail_on]:
        return ExitCode.GATE_FAILED
    verdict = validation["verdict"]
    return {"pass": ExitCode.PASSED, "fail": ExitCode.GATE_FAILED}.get(verdict, ExitCode.INCONCLUSIVE)
