"""What a gate is: a function from a stage's evidence to one result, or None where it does not apply.

Evidence values are numbers or per-picture arrays; `interval` gives a mean with its 90% bootstrap interval, and
`judge` makes an interval across the threshold inconclusive.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sanakit.contracts import GateResult, judge
from sanakit.registry import Registry

Evidence = Mapping[str, Any]
Gate = Callable[[Evidence], GateResult | None]
GATES: Registry[Gate] = Registry("gates", "sanakit.gates")


def gate_result(
    *,
    gate: str,
    code: str,
    metric: str,
    value: float,
    threshold: float,
    at_least: bool,
    ci: tuple[float, float] | None = None,
    hint: str = "",
) -> GateResult:
    low, high = ci if ci else (None, None)
    verdict = judge(value, threshold, at_least=at_least, ci_low=low, ci_high=high)
    return GateResult(
        gate=gate,
        code=code,
        metric=metric,
        value=float(value),
        ci_low=low,
        ci_high=high,
        threshold=float(threshold),
        verdict=verdict,
        hint="" if verdict == "pass" else hint,
    )


def interval(values: Any, *, statistic: Callable[..., Any] = np.mean) -> tuple[float, tuple[float, float]]:
    """The statistic of per-picture values and its 90% percentile-bootstrap interval."""
    rows = np.asarray(values, dtype=np.float64)
    draws = rows[np.random.default_rng(0).integers(len(rows), size=(400, len(rows)))]
    low, high = np.quantile(statistic(draws, axis=1), [0.05, 0.95])
    return float(statistic(rows)), (float(low), float(high))


def run_gates(stage: str, evidence: Evidence) -> list[GateResult]:
    """Every registered gate of the stage (its name begins with the stage's) that applies to this evidence."""
    results = []
    for name in GATES.names():
        if name.split("/")[0] == stage:
            result = GATES.get(name)(evidence)
            if result is not None:
                results.append(result)
    return results
