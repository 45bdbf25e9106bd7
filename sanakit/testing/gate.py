"""The contract of a gate: its rule, the evidence that it names, and its verdicts on good and on bad evidence."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from math import isfinite
from typing import Any

import numpy as np

from sanakit.checks.base import GATES, Gate, NotApplied
from sanakit.checks.evidence import STAGE_EVIDENCE, evidence_keys
from sanakit.checks.stage import checked
from sanakit.contracts import GateResult, Verdict
from sanakit.errors import CODES, did_you_mean
from sanakit.testing.contract import require, resolve


def check_gate(
    gate: str | Callable[..., Any], *, good: Mapping[str, Any], bad: Mapping[str, Any] | None = None
) -> None:
    """A registered name or a gate keeps its contract. good: evidence on which it passes under its default threshold;
    bad: evidence on which it fails. Keys are those of sanakit/checks/evidence.py. Raises SK0115."""
    item, name = resolve(gate, GATES)
    stage = name.split("/")[0]
    fix = f"Name it STAGE/WORDS, for example component/{name}; stages: {', '.join(STAGE_EVIDENCE)}."
    require(stage in STAGE_EVIDENCE and "/" in name, name, f"no stage is named {stage!r}", fix)
    require(callable(item), name, f"a {type(item).__name__}, expected a function", "Decorate a function.")
    if isinstance(item, Gate):
        _check_rule(item, name, stage)
    for label, evidence, expected in (("good", good, Verdict.PASS), ("bad", bad, Verdict.FAIL)):
        if evidence is not None:
            _check_verdict(item, name, stage, label, dict(evidence), expected)


def _check_rule(gate: Gate, name: str, stage: str) -> None:
    rule, known = gate.rule, sorted(evidence_keys(stage))
    fix = f"Take a code of `sanakit explain`, such as {'SK0201' if stage == 'component' else 'SK0502'}."
    require(rule.code in CODES, name, f"the code {rule.code!r} is not in the catalogue", fix)
    finite = isfinite(rule.default) and isfinite(rule.strict)
    require(finite, name, f"thresholds are {rule.default} and {rule.strict}", "Give two finite numbers.")
    ordered = rule.strict >= rule.default if rule.at_least else rule.strict <= rule.default
    side = "at least" if rule.at_least else "at most"
    found = f"strict asks {side} {rule.strict:g}, which is less than default's {rule.default:g}"
    require(ordered, name, found, "Give (default, strict) in this order.")
    for key in rule.needs:
        found = f"needs {key!r}, which stage {stage} does not measure{did_you_mean(key, known)}"
        require(key in known, name, found, "sanakit/checks/evidence.py lists every key.")
    if rule.needs:
        alone = gate({})
        fix = "Name in `needs` every key that the function reads."
        require(isinstance(alone, NotApplied), name, "it is evaluated without its evidence", fix)


def _check_verdict(
    gate: Callable[..., Any], name: str, stage: str, label: str, evidence: dict[str, Any], expected: Verdict
) -> None:
    known = sorted(evidence_keys(stage))
    for key in evidence:
        found = f"the {label} evidence has {key!r}, which stage {stage} does not measure{did_you_mean(key, known)}"
        require(key in known, name, found, "sanakit/checks/evidence.py lists every key.")
    before = deepcopy(evidence)
    result, again = checked(gate(evidence)), checked(gate(evidence))
    fix = "Copy what the function changes."
    require(_same(evidence, before), name, f"the {label} evidence was changed by the gate", fix)
    reason = getattr(result, "reason", "")
    needs = gate.rule.needs if isinstance(gate, Gate) else ()
    fix = f"Give evidence that the gate applies to; it needs {', '.join(needs) or 'what its function reads'}."
    require(isinstance(result, GateResult), name, f"it does not apply to the {label} evidence: {reason}", fix)
    assert isinstance(result, GateResult)
    fix = "Draw with a fixed seed: numpy.random.default_rng(0)."
    require(repr(result) == repr(again), name, f"two evaluations of the {label} evidence differ", fix)
    found = f"the result is of gate {result.gate!r}, expected {name!r}"
    require(result.gate in (name, ""), name, found, "Give GateResult the gate's own name.")
    require(bool(result.metric), name, "the result has no metric", "Say what is measured: metric='PSNR (dB)'.")
    measured = result.value is not None and isfinite(result.value)
    if measured and result.ci_low is not None and result.ci_high is not None and result.value is not None:
        inside = result.ci_low <= result.value <= result.ci_high
        found = f"value {result.value:g} lies outside its interval {result.ci_low:g} to {result.ci_high:g}"
        require(inside, name, found, "Measure both from the same images, as `mean_of` does.")
    span = "" if result.ci_low is None else f" ({result.ci_low:.4g} to {result.ci_high:.4g})"
    found = f"on the {label} evidence the verdict is {result.verdict}, expected {expected}"
    found += f": {result.metric} {result.value:.4g}{span}, threshold {result.threshold:.4g}"
    fix = "Correct the threshold or its side (at_least, at_most), or give evidence that is clearly on one side."
    require(result.verdict == expected, name, found, fix)


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two records of evidence hold the same values; arrays are compared by their contents."""
    if first.keys() != second.keys():
        return False
    return all(_equal(first[key], second[key]) for key in first)


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return isinstance(second, dict) and _same(first, second)
    if isinstance(first, np.ndarray):
        return bool(np.array_equal(first, second, equal_nan=first.dtype.kind == "f"))
    return bool(first == second)
