"""Gains and losses: each measure of the candidate against the base's, its interval, and whether a loss is allowed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from sanakit.decision.measures import COLOUR_FEATURES, MEASURES, RATIOS, SAMPLED, Measure

Row = Mapping[str, Any]
UNKNOWN = "unknown"
ROUNDING = 1e-3  # a measured change below it is arithmetic, whatever its interval says


@dataclass(frozen=True, kw_only=True)
class Compared:
    """low, high: the change's 90% interval, None where it has none. worse: the change and its interval with the bad
    side up."""

    key: str
    measure: Measure
    base: float
    candidate: float
    change: float
    low: float | None
    high: float | None
    title: str = ""  # what it is called in place of its measure

    @property
    def worse(self) -> tuple[float, float | None, float | None]:
        if self.measure.lower_is_better:
            return self.change, self.low, self.high
        return -self.change, _negative(self.high), _negative(self.low)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.key,
            "metric": self.title or METRIC_TITLES.get(self.key, self.measure.metric),
            "base": self.base,
            "candidate": self.candidate,
            "change": self.change,
            "ci_low": self.low,
            "ci_high": self.high,
            "unit": self.measure.change_unit,
            "exact": self.measure.exact,
            "why": self.measure.why,
        }


METRIC_TITLES = {
    "denoising-error": "error over the base's",
    "prompt-gain": "prompt gain over the base's",
    "encode-speed": "encoding speed",
    "decode-speed": "decoding speed",
}


def compare(
    rows: Sequence[Row], gates: Sequence[Row], tolerance: float | None, samples: Sequence[Row] = ()
) -> list[Compared]:
    """Every measure that both sides have. rows: of component.json. gates: of all stages. tolerance: the relative error
    that counts as the base's quality, such as 1.05; None where no race was run. samples: rows of evaluation.json."""
    named = {row["metric"]: row for row in rows}
    results = {gate["gate"]: gate for gate in gates}
    compared = []
    for key, measure in MEASURES.items():
        if key in RATIOS:
            one = _of_ratio(key, measure, results.get(measure.metric))
        elif key in SAMPLED:
            one = _of_samples(key, measure, samples)
        else:
            one = _of_row(key, measure, named.get(measure.metric))
        if one:
            compared.append(one)
    return compared


def _of_row(key: str, measure: Measure, row: Row | None) -> Compared | None:
    if row is None or not (_known(row.get("base")) and _known(row.get("candidate"))):
        return None
    base, candidate = float(row["base"]), float(row["candidate"])
    if not measure.unit and not base:
        return None
    scale = 1.0 if measure.unit else abs(base)
    ends = [row.get(end) for end in ("difference_low", "difference_high")]
    low, high = (float(end) / scale if end is not None and _known(end) else None for end in ends)
    change = (candidate - base) / scale
    return Compared(key=key, measure=measure, base=base, candidate=candidate, change=change, low=low, high=high)


def _of_samples(key: str, measure: Measure, samples: Sequence[Row]) -> Compared | None:
    """The first score of the measure's metric in its kind of features."""
    metric, colours = SAMPLED[key]
    for row in samples:
        in_colours = row.get("features") == COLOUR_FEATURES
        if row.get("metric") == metric and colours in (None, in_colours):
            one = _of_row(key, measure, row)
            return None if one is None else replace(one, title=f"{measure.metric} ({row.get('features')})")
    return None


def _of_ratio(key: str, measure: Measure, gate: Row | None) -> Compared | None:
    if gate is None or not _known(gate.get("value")):
        return None
    value = float(gate["value"])
    low, high = (gate[end] - 1 if _known(gate.get(end)) else None for end in ("ci_low", "ci_high"))
    return Compared(key=key, measure=measure, base=1.0, candidate=value, change=value - 1, low=low, high=high)


def sort_changes(
    compared: Sequence[Compared], allowed_loss: Mapping[str, float], tolerance: float | None
) -> dict[str, list[Any]]:
    """`gains`, `losses` and the names of measures that are the `same` within noise. allowed_loss: by name of the
    measure, in the unit of its change."""
    sorted_rows: dict[str, list[Any]] = {"gains": [], "losses": [], "same": []}
    for one in compared:
        noise = one.measure.noise if one.measure.exact else max(one.measure.noise, ROUNDING)
        if one.key == "denoising-error" and tolerance:
            noise = tolerance - 1
        change, low, high = one.worse
        sure_loss = low > 0 if low is not None else change > 0
        sure_gain = high < 0 if high is not None else change < 0
        if abs(change) <= noise or not (sure_loss or sure_gain):
            sorted_rows["same"].append(one.key)
        elif sure_gain:
            sorted_rows["gains"].append(one.as_dict())
        else:
            allowed = allowed_loss.get(one.key)
            verdict = within(one, allowed)
            sorted_rows["losses"].append(one.as_dict() | {"allowed": allowed, "within_allowed": verdict})
    return sorted_rows


OF_KIND = {
    "vae": ("psnr", "ssim", "perceptual-distance", "tokens", "latent-values", "decode-speed"),
    "text_encoder": ("caption-tokens", "truncated"),
}


def unmeasured(
    compared: Sequence[Compared], allowed_loss: Mapping[str, float], *, kind: str | None, trained: bool
) -> list[str]:
    """Measures that the policy limits and of which nothing is known, though the stages that measure it are done. kind:
    vae or text_encoder; what only the other one has is not asked for. trained: stage full has trained a core."""
    known = {one.key for one in compared}
    others = {key for name, keys in OF_KIND.items() if kind and name != kind for key in keys}
    of_full = {*RATIOS, *SAMPLED}
    return [key for key in allowed_loss if key not in known | others and (trained or key not in of_full)]


def within(one: Compared, allowed: float | None) -> bool | str:
    """Whether a loss is within what is allowed: by its whole interval, and `unknown` where nothing is said of it, where
    the interval holds the limit, or where it has none though it is measured on a sample."""
    change, low, high = one.worse
    if allowed is None:
        return UNKNOWN
    if one.measure.exact:
        return change <= allowed
    if low is None or high is None:
        return UNKNOWN
    return True if high <= allowed else False if low > allowed else UNKNOWN


def open_losses(losses: Sequence[Row]) -> Iterator[Row]:
    """Losses that the policy limits and the measurement cannot place."""
    return (row for row in losses if row["within_allowed"] == UNKNOWN and row["allowed"] is not None)


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
