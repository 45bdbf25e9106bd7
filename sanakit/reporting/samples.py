"""Scores of what base and candidate draw (evaluation.json): rows for the page and the terminal."""

from collections.abc import Mapping
from typing import Any

from sanakit.reporting.charts import is_number

Row = dict[str, Any]
SAME, BETTER, WORSE = "same", "better", "worse"


def evaluated_samples(evaluation: Mapping[str, Any]) -> Row:
    """What the page shows of evaluation.json."""
    return {"evaluated": evaluated_rows(evaluation), "evaluated_on": evaluated_on(evaluation)}


def evaluated_rows(evaluation: Mapping[str, Any]) -> list[Row]:
    """A row a score: label, base, candidate, interval, what true images score, which side is better, sense (better,
    worse or same), note."""
    rows = []
    for one in evaluation.get("rows") or []:
        low, high = one.get("difference_low"), one.get("difference_high")
        rows.append(
            {
                "label": one.get("label") or one.get("metric", ""),
                "title": one.get("title", ""),
                "base": one.get("base"),
                "candidate": one.get("candidate"),
                "low": low,
                "high": high,
                "true": one.get("of_true_images"),
                "better": one.get("better", ""),
                "sense": sense_of(low, high, one.get("better", "")),
                "note": one.get("error") or one.get("note") or "",
            }
        )
    return rows


def sense_of(low: Any, high: Any, better: str) -> str:
    """Which side is better by the interval of the change; empty where nothing is known."""
    if not (is_number(low) and is_number(high)):
        return ""
    if low <= 0 <= high:
        return SAME
    if not better:
        return "changed"
    return BETTER if (low > 0) == (better == "higher") else WORSE


def evaluated_on(evaluation: Mapping[str, Any]) -> str:
    """How many prompts and samples are behind the scores; why there are none."""
    if not evaluation:
        return ""
    if not evaluation.get("rows"):
        return f"Samples were not scored: {evaluation.get('note') or 'no reason was recorded'}."
    count, seeds, references = (evaluation.get(key) for key in ("num_prompts", "num_seeds", "reference"))
    return (
        f"{count} held-out prompts, {seeds} samples each, the same prompts and seeds for both; 90% intervals over "
        f"prompts with their seeds, paired. Distances are to {references} images of the training split."
    )
