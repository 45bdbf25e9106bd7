"""For which cores the stated probability is calibrated: the range of the decision study's runs, by kind of swap."""

from dataclasses import asdict, dataclass
from typing import Any

from sanakit.swap.slope_law import packaged

SIZES = ("parameters", "tokens", "batch")


@dataclass(frozen=True, kw_only=True)
class RaceFacts:
    """What a probability depends on beside the curves. parameters, tokens: of the base's core and of an image in it.
    batch: images a step. measure: the unit of the relative error (`Target.measure`)."""

    parameters: int
    tokens: int
    batch: int
    measure: str


def calibrated_for(kind: str) -> dict[str, Any]:
    """{"parameters", "tokens", "batch"}: [least, most], and "measure", of the runs that the constants were fitted
    to."""
    return dict(packaged()["calibrated_for"][kind])


def why_extrapolated(kind: str, facts: RaceFacts) -> str:
    """One sentence where the facts lie outside `calibrated_for`; empty inside."""
    known, asked = calibrated_for(kind), asdict(facts)
    outside = [key for key in SIZES if not known[key][0] <= asked[key] <= known[key][1]]
    if outside:
        spans = "; ".join(f"{key} {asked[key]:,}, studied {_span(known[key])}" for key in outside)
        return f"extrapolated: the probability is not calibrated for a core of this size ({spans})"
    if facts.measure != known["measure"]:
        units = f"{facts.measure}; studied {known['measure']}"
        return f"extrapolated: the probability is not calibrated for errors in this unit ({units})"
    return ""


def _span(ends: list[int]) -> str:
    return f"{ends[0]:,}" if ends[0] == ends[1] else f"{ends[0]:,} to {ends[1]:,}"
