"""What a gate is: a function from a stage's evidence to one result, or None where it does not apply.

Evidence values are numbers or per-picture arrays; `interval` gives a mean with its 90% bootstrap interval, and
`judge` makes an interval across the threshold inconclusive. Thresholds come from gates/policy.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sanakit.contracts import GateResult, Verdict, judge, samples_to_decide
from sanakit.gates.policy import Policy, threshold
from sanakit.registry import Registry
from sanakit.tracebacks import guarded

Evidence = Mapping[str, Any]
Gate = Callable[[Evidence], GateResult | None]
GATES: Registry[Gate] = Registry("gates", "sanakit.gates")
RESAMPLES = 400


def gate_result(
    *,
    gate: str,
    code: str,
    metric: str,
    value: float,
    at_least: bool,
    above: bool = False,
    ci: tuple[float, float] | None = None,
    samples: int | None = None,
    hint: str = "",
    own_threshold: float | None = None,
    decidable: bool = True,
) -> GateResult:
    """The value judged by the gate's default threshold, or own_threshold where gates/policy.py lists none (a plugin's).

    above: with at_least, the threshold itself fails. samples: images or prompts behind the interval. decidable: False where
    the value shows nothing, whatever it is: the result is inconclusive under every policy.
    """
    low, high = ci if ci else (None, None)
    limit = threshold(gate, own_threshold)
    verdict = judge(value, limit, at_least=at_least, above=above, ci_low=low, ci_high=high)
    if not decidable:
        verdict = Verdict.INCONCLUSIVE
    undecided = decidable and verdict == Verdict.INCONCLUSIVE
    return GateResult(
        gate=gate,
        code=code,
        metric=metric,
        value=float(value),
        ci_low=low,
        ci_high=high,
        threshold=limit,
        verdict=verdict,
        hint=hint,
        at_least=at_least,
        above=above,
        samples=samples,
        samples_needed=samples_to_decide(value, limit, ci_low=low, ci_high=high, samples=samples)
        if undecided
        else None,
        decidable=decidable,
    )


def interval(values: Any, *, statistic: Callable[..., Any] = np.mean) -> tuple[float, tuple[float, float]]:
    """The statistic of per-picture values and its 90% percentile-bootstrap interval."""
    rows = np.asarray(values, dtype=np.float64)
    draws = rows[resampled(len(rows))]
    low, high = np.quantile(statistic(draws, axis=1), [0.05, 0.95])
    return float(statistic(rows)), (float(low), float(high))


def ratio_interval(above: Any, below: Any) -> tuple[float, tuple[float, float]]:
    """Ratio of two means over the same pictures, paired, with its 90% interval."""
    first, second = np.asarray(above, np.float64), np.asarray(below, np.float64)
    rows = resampled(len(first))
    with np.errstate(all="ignore"):
        low, high = np.quantile(first[rows].mean(1) / second[rows].mean(1), [0.05, 0.95])
        return float(first.mean() / second.mean()), (float(low), float(high))


def resampled(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def run_gates(stage: str, evidence: Evidence, policy: Policy | None = None) -> list[GateResult]:
    """Every registered gate of the stage (its name begins with the stage's) that applies to this evidence, a cause
    before what follows from it. One that raises, or that cannot be imported, is a row that could not judge."""
    asked = [_ask(name, evidence) for name in GATES.names() if name.split("/")[0] == stage]
    return (policy or Policy()).apply([result for result in asked if result is not None])


def _ask(name: str, evidence: Evidence) -> GateResult | None:
    result, error = guarded(lambda: _checked(GATES.get(name)(evidence)))
    return result if error is None else GateResult.could_not_judge(name, *GATES.blame(name, error))


def _checked(result: Any) -> GateResult | None:
    """What a gate returned, its numbers as Python's own. Raises TypeError where it is no result."""
    if result is None:
        return None
    if not isinstance(result, GateResult):
        raise TypeError(f"the gate returned {type(result).__name__}, expected GateResult or None")
    if result.error:
        return result
    numbers = {key: getattr(result, key) for key in ("value", "ci_low", "ci_high", "threshold")}
    plain = {key: None if number is None else float(number) for key, number in numbers.items()}
    if plain["value"] is None or plain["threshold"] is None:
        raise TypeError(
            f"the gate returned value {result.value!r} and threshold {result.threshold!r}, expected numbers"
        )
    return replace(result, verdict=Verdict(result.verdict), **plain)
