"""Scores of a system with their intervals, and the change from a base to a candidate on the same prompts and noise.

Intervals are 90%, by bootstrap over prompts: a prompt is drawn with all its seeds, so that the spread of both is in
them. The reference images stay as they are. Resamples repeat prompts, which moves a distance; so the interval is that
of the resamples' deviations from their own mean, around the value.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from typing import Any

import numpy as np

from sanakit.errors import SanakitError
from sanakit.evaluation.clip import load_clip
from sanakit.evaluation.drawing import Drawn
from sanakit.evaluation.image_features import load_features
from sanakit.evaluation.metrics.base import METRICS, Measured, checked
from sanakit.tracebacks import guarded

RESAMPLES = 200
ENDS = (0.05, 0.95)
DEFAULT_METRICS = ("kid", "frechet", "caption-recovery", "diversity")


@dataclass(frozen=True, kw_only=True)
class Score:
    """value: None where the metric could not be evaluated, and `error` says why. metric: its name. features: what it
    was measured in. of_true_images: what the images that the prompts describe score. references: images that a distance
    was measured to."""

    metric: str
    title: str = ""
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    features: str = ""
    better: str = ""
    num_prompts: int
    num_seeds: int
    references: int | None = None
    of_true_images: float | None = None
    note: str = ""
    code: str = ""
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def label(self) -> str:
        """Metric and features: `kid (EffLite0)`."""
        return f"{self.metric} ({self.features})" if self.features else self.metric


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one metric gave: measured, or the code and text of the error that it raised."""

    name: str
    title: str
    better: str
    measured: Measured | None = None
    code: str = ""
    error: str = ""


def require_metrics(names: Sequence[str], features: Sequence[str], clip: str) -> None:
    """What can be known before an image is drawn: that the metrics exist and that what they need loads. A plugin that
    cannot be imported is left to its row. Raises SK0101, SK0104, SK0901 or SK0902."""
    if not names:
        raise SanakitError("SK0104", "no metric was named", fix="`sanakit ls metrics` lists them.")
    for name in names:
        if name not in METRICS.entries():
            METRICS.get(name)  # raises with suggestions, unless it was registered in this process
    for one in features:
        load_features(one, clip)
    if any(_fact(name, "clip") for name in names):
        load_clip(clip)


def _fact(name: str, fact: str) -> Any:
    """A fact of a metric; None of one that cannot be imported."""
    item, _ = guarded(partial(METRICS.get, name))
    return getattr(item, fact, None)


def measure(drawn: Drawn, names: Sequence[str], features: Sequence[str]) -> list[Outcome]:
    """Every metric on what was drawn, some in each of the features; one that raises is an outcome with its error."""
    return [_outcome(drawn.within(within), name) for name, within in _rows(names, features)]


def _rows(names: Sequence[str], features: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in dict.fromkeys(names):
        for within in features if _fact(name, "every_features") else features[:1]:
            yield name, within


def _outcome(drawn: Drawn, name: str) -> Outcome:
    entry = METRICS.entries().get(name)
    facts: dict[str, Any] = {"name": name, "title": entry.title if entry else name, "better": ""}

    def evaluated() -> Outcome:
        item = METRICS.get(name)
        measured = checked(item(drawn), drawn)
        equal = np.full((1, drawn.num_prompts), 1 / drawn.num_prompts)
        if not isfinite(float(measured.score(equal)[0])):
            raise ValueError("the score is not finite")
        return Outcome(**facts | {"measured": measured, "better": str(getattr(item, "better", ""))})

    outcome, error = guarded(evaluated)
    if error is not None or outcome is None:
        assert error is not None
        code, told = METRICS.blame(name, error)
        return Outcome(**facts, code=code, error=told)
    return outcome


def score_of(drawn: Drawn, outcome: Outcome) -> Score:
    """The score with its interval."""
    facts: dict[str, Any] = {"metric": outcome.name, "title": outcome.title, "better": outcome.better}
    facts |= {"num_prompts": drawn.num_prompts, "num_seeds": drawn.num_seeds}
    measured = outcome.measured
    if measured is None:
        return Score(**facts, code=outcome.code, error=outcome.error)
    value, draws = _resampled(measured, drawn.num_prompts)
    low, high = _ends(value, draws)
    return Score(
        **facts,
        value=value,
        ci_low=low,
        ci_high=high,
        features=measured.features,
        references=measured.references,
        of_true_images=measured.of_true_images,
        note=measured.note,
    )


def scores_of(drawn: Drawn, names: Sequence[str], features: Sequence[str]) -> list[Score]:
    """Every metric's scores, in the order of the names."""
    return [score_of(drawn, outcome) for outcome in measure(drawn, names, features)]


def compare_scores(
    base: Drawn, candidate: Drawn, names: Sequence[str], features: Sequence[str]
) -> list[dict[str, Any]]:
    """A row a score: of both sides, and the change from base to candidate with its interval, paired by prompt."""
    rows = []
    for one, other in zip(measure(base, names, features), measure(candidate, names, features), strict=True):
        first, second = score_of(base, one), score_of(candidate, other)
        row = second.as_dict() | {"label": second.label, "base": first.value, "candidate": second.value}
        row |= {"base_low": first.ci_low, "base_high": first.ci_high}
        row |= {"error": first.error or second.error, "code": first.code or second.code}
        row |= {"difference": None, "difference_low": None, "difference_high": None}
        if one.measured is not None and other.measured is not None:
            (value, draws), (base_value, base_draws) = (
                _resampled(measured, base.num_prompts) for measured in (other.measured, one.measured)
            )
            low, high = _ends(value - base_value, draws - base_draws)
            row |= {"difference": value - base_value, "difference_low": low, "difference_high": high}
        rows.append({key: item for key, item in row.items() if key != "value"})
    return rows


def _resampled(measured: Measured, count: int) -> tuple[float, np.ndarray]:
    """The score, and that of every resample of the prompts. The resamples are the same for every metric and system."""
    resamples = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
    value = float(measured.score(np.full((1, count), 1 / count))[0])
    return value, measured.score(resamples)


def _ends(value: float, draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws - draws.mean(), ENDS)
    return float(value + min(low, 0.0)), float(value + max(high, 0.0))
