"""A stage's evidence, asked by every gate of the stage."""

from dataclasses import dataclass, field, replace
from typing import Any

from sanakit.checks.base import GATES, Evidence, Gate, NotApplied
from sanakit.checks.evidence import evidence_keys
from sanakit.checks.policy import Policy
from sanakit.contracts import GateResult, Verdict
from sanakit.errors import did_you_mean
from sanakit.tracebacks import guarded


@dataclass
class StageResult:
    """results: of the gates that apply, a cause before what follows from it. not_applied: gate to the reason."""

    results: list[GateResult] = field(default_factory=list)
    not_applied: dict[str, str] = field(default_factory=dict)


def evaluate_stage(stage: str, evidence: Evidence, policy: Policy | None = None) -> StageResult:
    """Every registered gate of the stage (its name begins with the stage's). One that raises, or that cannot be
    imported, is a row that could not be evaluated. Raises KeyError for evidence that no gate knows: a misspelt key
    would skip one."""
    known = evidence_keys(stage)
    for key in evidence:
        if key not in known:
            raise KeyError(f"{key} is no evidence of stage {stage}{did_you_mean(key, sorted(known))}")
    stage_result = StageResult()
    for name in GATES.names():
        if name.split("/")[0] != stage:
            continue
        result = _ask(name, evidence, policy or Policy())
        if isinstance(result, NotApplied):
            stage_result.not_applied[name] = result.reason
        else:
            stage_result.results.append(result)
    return stage_result


def run_gates(stage: str, evidence: Evidence, policy: Policy | None = None) -> list[GateResult]:
    """The results of `evaluate_stage`."""
    return evaluate_stage(stage, evidence, policy).results


def _ask(name: str, evidence: Evidence, policy: Policy) -> GateResult | NotApplied:
    result, error = guarded(lambda: _evaluated(name, evidence, policy))
    if error is not None or result is None:
        assert error is not None
        return GateResult.could_not_be_evaluated(name, *GATES.blame(name, error))
    return result


def _evaluated(name: str, evidence: Evidence, policy: Policy) -> GateResult | NotApplied:
    gate = GATES.get(name)
    if isinstance(gate, Gate):
        return checked(gate(evidence, policy.limit(name, gate.rule.default)))
    result = checked(gate(evidence))  # a plugin's plain function evaluates by its own threshold
    return result if isinstance(result, NotApplied) else policy.apply([result])[0]


def checked(result: Any) -> GateResult | NotApplied:
    """What a gate returned, its numbers as Python's own. Raises TypeError where it is no result."""
    if isinstance(result, NotApplied):
        return result
    if result is None:
        return NotApplied("returned nothing")
    if not isinstance(result, GateResult):
        raise TypeError(f"the gate returned {type(result).__name__}, expected GateResult or None")
    if result.error:
        return result
    if result.value is None or result.threshold is None:
        raise TypeError(
            f"the gate returned value {result.value!r} and threshold {result.threshold!r}, expected numbers"
        )
    numbers = {key: getattr(result, key) for key in ("value", "ci_low", "ci_high", "threshold")}
    plain: dict[str, Any] = {key: None if number is None else float(number) for key, number in numbers.items()}
    return replace(result, verdict=Verdict(result.verdict), **plain)
