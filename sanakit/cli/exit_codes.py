"""The exit code that a validation stands for."""

from typing import Any

from sanakit.errors import ExitCode

FAILS: dict[str, tuple[str, ...]] = {"do-not": ("do-not",), "not-yet": ("do-not", "not-yet")}


def unevaluated_gates(validation: dict[str, Any]) -> list[dict[str, Any]]:
    """Gates that raised instead of measuring."""
    return [gate for stage in validation["stages"].values() for gate in stage["gates"] if gate.get("error")]


def exit_code_of(validation: dict[str, Any], fail_on: str | None = None) -> int:
    """The verdict's; 5 where something could not be evaluated because it raised: it is in the table, with the verdict
    of everything else. fail_on: 1 where the decision's answer is that, or worse."""
    if unevaluated_gates(validation):
        return ExitCode.ERROR
    if fail_on and validation["decision"]["answer"] in FAILS[fail_on]:
        return ExitCode.GATE_FAILED
    verdict = validation["verdict"]
    return {"pass": ExitCode.PASSED, "fail": ExitCode.GATE_FAILED}.get(verdict, ExitCode.INCONCLUSIVE)
