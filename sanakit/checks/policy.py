"""Thresholds of gates as a policy: `default`, `strict`, or a YAML file that overrides single gates.

Each gate states both thresholds in its rule. A threshold is either what the gate's words mean (the rule's definition),
or it stands between what clean systems read in A/A runs (experiments/faults/calibrate_gates.py) and the nearest planted
fault (experiments/faults/fault_catalogue.py): beyond the 95% quantile of the worst clean system by at least the
distance from its median to that quantile, twice that for `default`. docs/gates.md has both readings of every gate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sanakit.checks.base import GATES, Rule, rule_of
from sanakit.config_fields import read_yaml
from sanakit.contracts import GateResult, Verdict, decide, samples_to_decide
from sanakit.decision import measure_names
from sanakit.errors import SanakitError, did_you_mean
from sanakit.hashing import hash_record
from sanakit.registry import BUILTIN as BUILTIN_ORIGIN

BUILTIN = ("default", "strict")
LARGEST = 1e300  # of a threshold


@dataclass(frozen=True, kw_only=True)
class Policy:
    """name: what was asked for. thresholds: of every gate that differs from its own default. allowed_loss: how much
    worse than the base's a measure of the decision may be (sanakit/decision/measures.py), in the unit of its change."""

    name: str = "default"
    thresholds: tuple[tuple[str, float], ...] = ()
    allowed_loss: tuple[tuple[str, float], ...] = ()

    @property
    def fingerprint(self) -> str:
        return hash_record(list(self.thresholds))[:16]

    def as_dict(self) -> dict[str, Any]:
        record = {"name": self.name, "fingerprint": self.fingerprint, "thresholds": dict(self.thresholds)}
        return record | {"allowed_loss": dict(self.allowed_loss)}

    def limit(self, gate: str, default: float) -> float:
        """The threshold of a gate under this policy; default: where the policy says nothing of it."""
        return dict(self.thresholds).get(gate, default)

    def apply(self, results: Sequence[GateResult]) -> list[GateResult]:
        """Recorded results evaluated by this policy, whatever they were evaluated by before; nothing is measured
        again."""
        return [r if r.error else decided_again(r, self.limit(r.gate, default_of(r))) for r in results]


def default_of(result: GateResult) -> float:
    """The default threshold of a gate; a plugin's plain function keeps the one it evaluated by."""
    record = rule_of(result.gate)
    if record:
        return record.default
    assert result.threshold is not None, result.gate
    return result.threshold


def decided_again(result: GateResult, limit: float) -> GateResult:
    if limit == result.threshold or result.at_least is None or result.value is None:
        return result
    if not result.decidable:
        return replace(result, threshold=limit)
    span: dict[str, Any] = {"ci_low": result.ci_low, "ci_high": result.ci_high}
    verdict = decide(result.value, limit, at_least=result.at_least, above=result.above, **span)
    straddles = verdict == Verdict.INCONCLUSIVE
    needed = samples_to_decide(result.value, limit, samples=result.samples, **span) if straddles else None
    if result.advisory and verdict == Verdict.FAIL:
        verdict = Verdict.INCONCLUSIVE
    return replace(result, threshold=limit, verdict=verdict, samples_needed=needed)


def rules(origin: str | None = BUILTIN_ORIGIN) -> dict[str, Rule]:
    """The rule of every gate by name: of sanakit's own, or with None of plugins too."""
    names = [entry.name for entry in GATES.entries().values() if origin in (None, entry.origin)]
    return {name: record for name in names if (record := rule_of(name)) is not None}


def load_policy(name: str, known: Sequence[str] | None = None) -> Policy:
    """`default`, `strict`, or a YAML file `thresholds: {GATE: number}`, optionally with `from: strict` and
    `allowed_loss: {MEASURE: number}`.

    known: names of gates, plugins' included; by default every registered one. Raises SK0113 for unknown keys, gates or
    values.
    """
    if name in BUILTIN:
        if name == "default":
            return Policy()
        strict = tuple((gate, one.strict) for gate, one in rules(None).items() if one.strict != one.default)
        return Policy(name=name, thresholds=strict)
    path = Path(name).expanduser()
    if not path.is_file():
        raise SanakitError(
            "SK0113", f"no policy {name!r}{did_you_mean(name, list(BUILTIN))}; known: {', '.join(BUILTIN)}, or a file"
        )
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise SanakitError("SK0113", f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise SanakitError("SK0113", f"{path} holds {type(values).__name__}, expected `thresholds:`")
    _refuse(path, "key", values, ["from", "thresholds", "allowed_loss"])
    base = values.get("from", "default")
    if base not in BUILTIN:
        raise SanakitError("SK0113", f"{path}: from is {base!r}, expected {' or '.join(BUILTIN)}")
    changes = _numbers(path, values, "thresholds", "gate", list(gate_names() if known is None else known))
    allowed = _numbers(path, values, "allowed_loss", "measure", measure_names())
    if below := [name for name, limit in allowed.items() if limit < 0]:
        raise SanakitError(
            "SK0113", f"{path}: allowed_loss of {below[0]} is {allowed[below[0]]:g}, expected at least 0"
        )
    merged = dict(load_policy(base).thresholds) | changes
    return Policy(name=str(path), thresholds=tuple(sorted(merged.items())), allowed_loss=tuple(sorted(allowed.items())))


def _numbers(path: Path, values: dict[str, Any], section: str, what: str, known: list[str]) -> dict[str, float]:
    """A section of a policy file, name to number. Raises SK0113 for an unknown name and for what is no number."""
    changes = values.get(section) or {}
    if not isinstance(changes, dict):
        raise SanakitError("SK0113", f"{path}: {section} is {changes!r:.60}, expected {what.upper()}: number")
    _refuse(path, what, changes, known)
    for name, limit in changes.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not abs(limit) <= LARGEST:
            raise SanakitError("SK0113", f"{path}: {name} is {limit!r:.60}, expected a number")
    return {name: float(limit) for name, limit in changes.items()}


def _refuse(path: Path, what: str, given: dict[Any, Any], known: list[str]) -> None:
    for key in given:
        if key not in known:
            raise SanakitError("SK0113", f"{path}: unknown {what} {key!r:.60}{did_you_mean(str(key), known)}")


def gate_names() -> list[str]:
    """Names of every gate, plugins included, without importing any."""
    return GATES.names()
