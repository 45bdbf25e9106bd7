"""What a drift page says first: the largest effect and where it lies, the images that moved most, and what to do."""

from collections.abc import Mapping, Sequence
from typing import Any

from sanakit.reporting.charts import is_number

Row = Mapping[str, Any]

MOST_NAMED = 3  # images or prompts
SMALL, LARGE = 0.2, 0.8  # sd, as Cohen calls them
# what moves a feature, as evidence.effects names them, and what to check for it
CHECKS = {
    "mean": "check the shift of the normalisation, and brightness and colour handling of the images",
    "spread": "check the scaling factor, and contrast and input range of the images",
    "5% quantile": "check clipping, padding colour and input range",
    "median": "check the shift of the normalisation, and the padding colour",
    "95% quantile": "check clipping, padding colour and input range",
    "small steps": "check compression, the resizing filter and denoising",
    "mid freq.": "check the resizing filter and sharpening",
    "high freq.": "check the resizing filter, sharpening and JPEG quality",
    "corner freq.": "check the resizing filter, sharpening and JPEG quality",
    "norms": "check the tokenizer, the instruction and the layer of the text encoder",
}
TEXT = "check the tokenizer, the instruction, the layer and the case of the prompts"
STILL = "Nothing has to be done. A larger sample would find smaller effects."
FEW = "What to do: compare more images or prompts."


def summary(verdict: str, evidence: Mapping[str, Row], carried: Mapping[str, Row]) -> dict[str, Any]:
    """effect: one sentence; moved: what moved most, with its images in moved_images; advice: what to do."""
    largest = largest_effect(evidence)
    drifted = verdict == "drift"
    return {
        "effect": effect_text(largest, verdict) if largest else "",
        "moved": moved_most(evidence, carried) if drifted else "",
        "moved_images": moved_images(evidence, carried) if drifted else [],
        "advice": advice_for(verdict, largest),
    }


def largest_effect(evidence: Mapping[str, Row]) -> dict[str, Any] | None:
    """{kind, feature, channel, effect in sd} of the largest shift; None where no effect was measured."""
    effects = [
        {"kind": kind, "feature": feature, "channel": channel, "effect": value}
        for kind, parts in evidence.items()
        for feature, row in (parts.get("effects") or {}).items()
        for channel, value in enumerate(row)
        if is_number(value)
    ]
    return max(effects, key=lambda one: abs(one["effect"]), default=None)


def effect_text(reading: Row, verdict: str) -> str:
    """Where nothing drifted, the largest effect is one of many that chance brings."""
    size = abs(reading["effect"])
    word = "small" if size < SMALL else "large" if size >= LARGE else "medium"
    place = "norm" if reading["feature"] == "norms" else f"{reading['feature']} of channel {reading['channel']}"
    way = "up" if reading["effect"] > 0 else "down"
    if verdict != "drift":
        chance = "within chance" if verdict == "no-drift" else "which may be chance"
        return f"Largest difference: {place} ({reading['kind']}), {size:.2f} standard deviations {way}, {chance}."
    return f"Largest effect: {place} ({reading['kind']}), {size:.2f} standard deviations {way}, a {word} one."


def moved_most(evidence: Mapping[str, Row], carried: Mapping[str, Row]) -> str:
    """The rows of the current side that are farthest from the reference, by their labels."""
    names = [shown.label if shown and shown.label else f"row {row}" for row, shown in _farthest(evidence, carried)]
    return f"Moved most: {', '.join(names)}." if names else ""


def moved_images(evidence: Mapping[str, Row], carried: Mapping[str, Row]) -> list[dict[str, str]]:
    """{label, image} of the same rows, where the side carries their images."""
    rows = [(row, shown) for row, shown in _farthest(evidence, carried) if shown and shown.uri]
    return [{"label": shown.label or f"row {row}", "image": shown.uri} for row, shown in rows]


def _farthest(evidence: Mapping[str, Row], carried: Mapping[str, Row]) -> list[tuple[int, Any]]:
    """The first rows of the first kind that names any, each with what its side carries of it, or None."""
    for kind, parts in evidence.items():
        if rows := (parts.get("farthest") or {}).get("current"):
            known = carried.get(kind, {}).get("current", {})
            return [(row, known.get(row)) for row, _ in rows[:MOST_NAMED]]
    return []


def advice_for(verdict: str, reading: Row | None) -> str:
    if verdict == "no-drift":
        return STILL
    if verdict != "drift" or reading is None:
        return FEW if verdict != "drift" else ""
    check = TEXT if reading["kind"] == "embeddings" else CHECKS.get(reading["feature"], "")
    if not check:
        return ""
    same = "Both sides have to come from the same encoder; one that is trained drifts by design."
    return f"What to do: {check}. {same}"


def sides_text(about: Mapping[str, Sequence[Row]]) -> list[str]:
    """One line a side: encoder, data and number of samples of each kind."""
    lines = []
    for side, rows in about.items():
        told = [
            f"{row['count']:,} {row['kind']}"
            + (f" of {row['encoder']}" if row.get("encoder") else ", encoder not stated")
            + (f", data {row['data']}" if row.get("data") else ", data not stated")
            for row in rows
        ]
        lines.append(f"{side}: {'; '.join(told)}")
    return lines
