"""Reference against current: every statistic on the features it is meant for, Holm over all, one verdict.

Under exchangeability of the two sides a clean comparison alarms with probability at most alpha (permutation tests,
Holm); exceptions are named in docs/drift.md. No alarm with fewer samples than `NEEDED` a side is inconclusive.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sanakit.contracts import Reading
from sanakit.drift.base import COMPONENTS, DRIFT, Seen, ask, seen_by
from sanakit.drift.causes import likely_cause
from sanakit.drift.features import STRUCTURED
from sanakit.drift.permutation import holm
from sanakit.drift.sample import Sample
from sanakit.drift.statistics.rank_max import normal_scores
from sanakit.errors import SanakitError

if TYPE_CHECKING:
    import pandas as pd

NEEDED = 32
MOST_DIMENSIONS = 32
ROWS_PER_DIMENSION = 10
KEYS = ("name", "title", "value", "ci_low", "ci_high", "p_value", "threshold", "alarm", "where")


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """verdict: no-drift, drift or inconclusive. readings: of the statistics, and what is likely to have caused a
    drift."""

    verdict: str
    readings: list[Reading]

    def as_dict(self) -> dict[str, Any]:
        rows = [{k: _plain(getattr(r, k)) for k in (*KEYS, *(["error"] if r.error else []))} for r in self.readings]
        return {"verdict": self.verdict, "readings": rows}

    @property
    def alarms(self) -> list[Reading]:
        """Readings that alarm, strongest evidence first."""
        alarming = [reading for reading in self.readings if reading.alarm]
        return sorted(alarming, key=lambda reading: 0.0 if reading.p_value is None else reading.p_value)

    def to_frame(self) -> "pd.DataFrame":
        """One row a reading, columns as in `as_dict`."""
        import pandas as pd

        return pd.DataFrame(self.as_dict()["readings"])

    def __repr__(self) -> str:
        strongest = f"; strongest: {self.alarms[0].where}" if self.alarms else ""
        return f"<Comparison {self.verdict}: {len(self.alarms)} of {len(self.readings)} readings alarm{strongest}>"

    def _repr_html_(self) -> str:
        from sanakit.reporting.ci import likely_causes
        from sanakit.reporting.drift import why
        from sanakit.reporting.notebook import fragment

        rows = self.as_dict()["readings"]
        rows = sorted(rows, key=lambda row: (not row["alarm"], 1.0 if row["p_value"] is None else row["p_value"]))
        shown = [
            {key: row[key] for key in ("title", "value", "p_value", "where")}
            | {"alarm": "alarm" if row["alarm"] else ""}
            for row in rows
        ]
        return fragment("Drift", self.verdict, [why(self.verdict, rows), *likely_causes(rows)], shown)


def compare(
    reference: dict[str, Sample], current: dict[str, Sample], *, alpha: float = 0.05, seed: int = 0
) -> Comparison:
    """Samples by kind, of `read_samples`. Raises SK0702 when the sides have no kind in common or differ in geometry
    or normalisation."""
    kinds = [kind for kind in reference if kind in current]
    if not kinds:
        raise SanakitError(
            "SK0702", f"the two fingerprints differ in kind: {_list(reference)} against {_list(current)}"
        )
    readings: list[Reading] = []
    few: list[Reading] = []
    compared: list[str] = []
    for kind in kinds:
        first, second = reference[kind], current[kind]
        _refuse_different(first, second)
        readings += [r for side, s in (("reference", first), ("current", second)) for r in nonfinite_readings(s, side)]
        if first.digest == second.digest:
            readings.append(Reading(name="identical", title="both sides hold the same numbers", value=0.0, where=kind))
        elif min(len(first.rows), len(second.rows)) < NEEDED:
            few += [
                _too_few(s, side) for side, s in (("reference", first), ("current", second)) if len(s.rows) < NEEDED
            ]
        else:
            kind_readings = statistics(first, second, alpha, seed)
            if len(kinds) > 1:
                kind_readings = [
                    replace(r, where=": ".join(part for part in (kind, r.where) if part)) for r in kind_readings
                ]
            readings += kind_readings
            compared.append(kind)
    readings = correct(readings, alpha)
    if any(r.alarm for r in readings):
        causes = ((kind, likely_cause(reference[kind], current[kind])) for kind in compared)
        readings += [replace(cause, where=kind) for kind, cause in causes if cause]
        return Comparison(verdict="drift", readings=readings + few)
    undecided = few or any(r.error for r in readings)
    return Comparison(verdict="inconclusive" if undecided else "no-drift", readings=readings + few)


def statistics(reference: Sample, current: Sample, alpha: float, seed: int) -> list[Reading]:
    """Every registered statistic on its features, p-values not yet corrected."""
    projected = project(reference, current)
    readings = []
    for name in DRIFT.names():
        seen = seen_by(name)
        if reference.kind not in seen.blocks:
            continue
        first, second, names = columns_of(seen, reference, current, projected)
        if first.shape[1]:
            reading = ask(name, first, second, alpha, names=names, seed=seed)
            if seen.blocks[reference.kind] == COMPONENTS and not reading.where:
                reading = replace(reading, where=f"{first.shape[1]} principal components of all features")
            readings.append(reading)
    return readings


def columns_of(
    seen: Seen, reference: Sample, current: Sample, projected: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """What a statistic sees of two sides: rows (n, d) and (m, d), and the names of the columns. projected: of
    `project`."""
    blocks = seen.blocks[reference.kind]
    if blocks == COMPONENTS:
        (first, second), names = projected, [f"component {k}" for k in range(projected[0].shape[1])]
    else:
        first, second, names = reference.matrix(*blocks), current.matrix(*blocks), reference.names(*blocks)
    if seen.rows_named:
        names = [f"row {row}" for row in current.rows]
    return first, second, names


def project(reference: Sample, current: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of the pooled normal scores, as many as a tenth of the smaller side, at most 32. Fitted
    without labels, so permutation tests on them stay valid."""
    from sklearn.decomposition import PCA as Components

    blocks = (*STRUCTURED, "correlation")
    scores = normal_scores(np.concatenate([reference.matrix(*blocks), current.matrix(*blocks)]))
    scores = scores[:, scores.std(0) > 0]
    smaller = min(len(reference.rows), len(current.rows))
    count = min(MOST_DIMENSIONS, smaller // ROWS_PER_DIMENSION, scores.shape[1])
    if not count:
        empty = np.empty((len(scores), 0))
        return empty[: len(reference.rows)], empty[len(reference.rows) :]
    components = Components(count, svd_solver="full" if scores.shape[1] <= 500 else "randomized", random_state=0)
    rows = components.fit_transform(scores.astype(np.float64))
    return rows[: len(reference.rows)], rows[len(reference.rows) :]


def correct(readings: list[Reading], alpha: float) -> list[Reading]:
    """Holm over all readings with a p-value: `p_value` becomes the adjusted one, `alarm` compares it with alpha."""
    tested = [i for i, r in enumerate(readings) if r.p_value is not None]
    adjusted = holm(np.array([readings[i].p_value for i in tested], float))
    result = list(readings)
    for i, p in zip(tested, adjusted, strict=True):
        result[i] = replace(readings[i], p_value=float(p), threshold=alpha, alarm=bool(p <= alpha))
    return result


def nonfinite_readings(sample: Sample, side: str) -> list[Reading]:
    if not sample.set_aside:
        return []
    worst = int(np.argmax(sample.nonfinite))
    unit = "images" if sample.kind == "latents" else "prompts"
    return [
        Reading(
            name="non-finite",
            title=f"NaN or Inf values of the {side} side",
            value=float(sum(sample.nonfinite)),
            threshold=0.0,
            alarm=True,
            where=f"{side}: {sample.set_aside} of {sample.count} {unit}, most in channel {worst} "
            f"({sample.nonfinite[worst]})",
        )
    ]


def _too_few(sample: Sample, side: str) -> Reading:
    unit = "images" if sample.kind == "latents" else "prompts"
    return Reading(
        name="samples",
        title=f"too few {unit} to say: {len(sample.rows)}, {NEEDED} needed",
        value=float(len(sample.rows)),
        threshold=float(NEEDED),
        where=side,
    )


def _refuse_different(reference: Sample, current: Sample) -> None:
    for key in ("channels", "normalisation", "height", "width"):
        first, second = reference.facts.get(key), current.facts.get(key)
        if first != second:
            raise SanakitError("SK0702", f"the two fingerprints differ in {key}: {first} against {second}")


def _list(samples: dict[str, Sample]) -> str:
    return " and ".join(samples)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
