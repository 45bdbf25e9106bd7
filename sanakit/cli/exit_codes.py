"""The exit code that a validation stands for."""

from typing import Any

from sanakit.errors import ExitCode


def unevaluated_gates(validation: dict[str, Any]) -> list[dict[str, Any]]:
    """Gates that raised instead of measuring."""
    return [gate for stage in validation["stages"].values() for gate in stage["gates"] if gate.get("error")]


def exit_code_of(validation: dict[str, Any]) -> int:
    """The verdict's; 5 where something could not be evaluated because it raised: it is in the table, with the verdict
    of everything else."""
    if unevaluated_gates(validation):
        return ExitCode.ERROR
    verdict = validation["verdict"]
    return {"pass": ExitCode.PASSED, "fail": ExitCode.GATE_FAILED}.get(verdict, ExitCode.INCONCLUSIVE)
