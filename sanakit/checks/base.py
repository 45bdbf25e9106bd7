"""What a gate is: a function that measures, and the rule by which its measurement is evaluated.

    @GATES.register("component/mask", title="the mask tells words from padding", embedded=True)
    @rule(code="SK0323", metric="share of tokens kept", at_most=(0.9, 0.7), needs=("mask_of_one_word",))
    def mask(evidence: TextEvidence) -> float:
        return evidence["mask_of_one_word"]

The function returns a number or a `Measurement` with an interval; what it needs is named, so a gate whose evidence was
not measured is listed as not applied. An interval across the threshold is inconclusive, and one of
fewer than FEWEST_VALUES values.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sanakit.contracts import GateResult, Verdict, decide, samples_to_decide
from sanakit.errors import SanakitError
from sanakit.registry import Registry

Evidence = Mapping[str, Any]
RESAMPLES = 400
FEWEST_VALUES = 8  # by which an interval decides: of fewer a resample says nothing, and of one its width is 0


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """value, and where it has one its 90% interval `ci` over `samples` images or prompts.

    metric, hint: in place of the rule's, where they name what was measured. decidable: False where the value shows
    nothing, whatever it is. advisory: True where a value on the bad side shows nothing; the result is then
    inconclusive.
    """

    value: float
    ci: tuple[float, float] | None = None
    samples: int | None = None
    metric: str = ""
    hint: str = ""
    decidable: bool = True
    advisory: bool = False


@dataclass(frozen=True)
class NotApplied:
    """Why a gate does not apply to this evidence."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a measurement is evaluated. default, strict: thresholds of the two policies. at_least: the good side; above:
    with at_least, the threshold itself fails. needs: keys of the evidence without which the gate does not apply.
    definition: what the threshold means; empty where it was calibrated on clean systems
    (experiments/faults/calibrate_gates.py)."""

    code: str
    metric: str
    default: float
    strict: float
    at_least: bool
    above: bool = False
    needs: tuple[str, ...] = ()
    hint: str = ""
    definition: str = ""

    def decide(self, gate: str, measured: Measurement, limit: float) -> GateResult:
        """The result of one gate under one threshold."""
        low, high = measured.ci or (None, None)
        if low is not None and measured.samples is not None and measured.samples < FEWEST_VALUES:
            measured = replace(measured, decidable=False)
        verdict = decide(measured.value, limit, at_least=self.at_least, above=self.above, ci_low=low, ci_high=high)
        straddles = measured.decidable and verdict == Verdict.INCONCLUSIVE
        if not measured.decidable or (measured.advisory and verdict == Verdict.FAIL):
            verdict = Verdict.INCONCLUSIVE
        needed = None
        if straddles:
            needed = samples_to_decide(measured.value, limit, ci_low=low, ci_high=high, samples=measured.samples)
        return GateResult(
            gate=gate,
            code=self.code,
            metric=measured.metric or self.metric,
            value=float(measured.value),
            ci_low=low,
            ci_high=high,
            threshold=float(limit),
            verdict=verdict,
            hint=measured.hint or self.hint,
            at_least=self.at_least,
            above=self.above,
            samples=measured.samples,
            samples_needed=needed,
            decidable=measured.decidable,
            advisory=measured.advisory,
        )


class Gate:
    """A measuring function with its rule. `name` and `title` are set by the registry."""

    def __init__(self, measure: Callable[[Any], "float | Measurement | NotApplied"], record: Rule) -> None:
        functools.update_wrapper(self, measure)
        self.measure, self.rule, self.name = measure, record, ""

    def __call__(self, evidence: Evidence, limit: float | None = None) -> GateResult | NotApplied:
        """Measure and evaluate by `limit`, by default the rule's default threshold."""
        if missing := [key for key in self.rule.needs if key not in evidence]:
            return NotApplied(f"not measured: {', '.join(missing)}")
        measured = self.measure(evidence)
        if isinstance(measured, NotApplied):
            return measured
        if not isinstance(measured, Measurement):
            measured = Measurement(value=float(measured))
        return self.rule.decide(self.name, measured, self.rule.default if limit is None else limit)


GATES: Registry[Callable[[Evidence], Any]] = Registry("gates")


def rule(
    *,
    code: str,
    metric: str = "",
    at_least: tuple[float, float] | None = None,
    above: tuple[float, float] | None = None,
    at_most: tuple[float, float] | None = None,
    needs: tuple[str, ...] = (),
    hint: str = "",
    definition: str = "",
) -> Callable[[Callable[[Any], "float | Measurement | NotApplied"]], Gate]:
    """Decorator: the measuring function becomes a gate. Exactly one of at_least, above and at_most gives the thresholds
    (default, strict); above is at_least without the threshold itself. Raises ValueError for none or several."""
    sides = [side for side in (at_least, above, at_most) if side is not None]
    if len(sides) != 1:
        raise ValueError(f"a rule has one of at_least, above and at_most, found {len(sides)}")
    record = Rule(
        code=code,
        metric=metric,
        default=float(sides[0][0]),
        strict=float(sides[0][1]),
        at_least=at_most is None,
        above=above is not None,
        needs=needs,
        hint=hint,
        definition=definition,
    )

    def decorate(measure: Callable[[Any], float | Measurement | NotApplied]) -> Gate:
        return Gate(measure, record)

    return decorate


def rule_of(name: str) -> Rule | None:
    """The rule of a registered gate; None for a plugin's plain function, and where nothing of this name can be
    loaded."""
    try:
        return getattr(GATES.get(name), "rule", None)
    except SanakitError:
        return None


def mean_of(values: Any, *, statistic: Callable[..., Any] = np.mean, metric: str = "", hint: str = "") -> Measurement:
    """The statistic of one value an image with its 90% percentile-bootstrap interval."""
    value, ci = interval(values, statistic=statistic)
    return Measurement(value=value, ci=ci, samples=len(values), metric=metric, hint=hint)


def interval(values: Any, *, statistic: Callable[..., Any] = np.mean) -> tuple[float, tuple[float, float]]:
    """The statistic of values (N, ...) by image, and its 90% percentile-bootstrap interval."""
    rows = np.asarray(values, dtype=np.float64)
    draws = rows[resampled(len(rows))]
    low, high = np.quantile(statistic(draws, axis=1), [0.05, 0.95])
    return float(statistic(rows)), (float(low), float(high))


def ratio_interval(above: Any, below: Any) -> tuple[float, tuple[float, float]]:
    """Ratio of two means over the same images, paired, with its 90% interval."""
    first, second = np.asarray(above, np.float64), np.asarray(below, np.float64)
    rows = resampled(len(first))
    with np.errstate(all="ignore"):
        low, high = np.quantile(first[rows].mean(1) / second[rows].mean(1), [0.05, 0.95])
        return float(first.mean() / second.mean()), (float(low), float(high))


def resampled(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
