"""The decision in words, the same on the terminal, on the page and in a summary for CI."""

from collections.abc import Mapping, Sequence
from typing import Any

from sanakit.decision.answer import said_change
from sanakit.reporting.charts import is_number
from sanakit.reporting.page import duration, number

Row = Mapping[str, Any]

WORDS = {"swap": "Swap", "swap-with-loss": "Swap, with a loss", "not-yet": "Not yet", "do-not": "Do not swap"}
# the class of a page and the colour of a terminal: a loss is amber, never green
MOODS = {"swap": "pass", "swap-with-loss": "inconclusive", "not-yet": "inconclusive", "do-not": "fail"}
PROBABILITIES = {  # of strategy.json
    "probability": "probability that the recommendation is right",
    "probability_within_horizon": "probability that it reaches the base's quality within the horizon",
}
HOUR = 3600.0
MOST = 4  # changes that a line names


def headline(validation: Row) -> str:
    """Answer, what is swapped, and why: one line."""
    decision = validation["decision"]
    place = "" if validation["base"] == "none" else f" in {validation['base']}"
    return f"{WORDS[decision['answer']]}: {validation['candidate']}{place}. {decision['reason']}"


def lines_of(validation: Row) -> list[tuple[str, str]]:
    """Label and text of the lines behind the headline."""
    decision = validation["decision"]
    return [
        ("gains", changes_text(decision["gains"]) or "none"),
        ("losses", changes_text(decision["losses"]) or "none"),
        ("cost", cost_text(decision["cost"])),
        ("risk", risk_text(decision["risk"])),
        ("next", decision["next"]),
    ]


def changes_text(changes: Sequence[Row]) -> str:
    """The largest changes first in the order of the decision, with their intervals where there are any."""
    told = [change_text(one) for one in changes[:MOST]]
    return "; ".join(told + ([f"{len(changes) - MOST} more"] if len(changes) > MOST else []))


def change_text(one: Row) -> str:
    """`PSNR 26.7 to 23 (-3.78 dB)`; a loss that the policy limits says where it stands."""
    within = one.get("within_allowed")
    verdict = ", allowed" if within is True else ", not allowed" if within is False else ""
    return f"{one['metric']} {number(one['base'])} to {number(one['candidate'])} ({said_change(one)}{verdict})"


def interval_text(one: Row) -> str:
    """The change's 90% interval in words; empty where it has none."""
    if not (is_number(one["ci_low"]) and is_number(one["ci_high"])):
        return "counted" if one.get("exact") else "not measured"
    ends = [said_change({**one, "change": one[end]}) for end in ("ci_low", "ci_high")]
    return f"{ends[0]} to {ends[1]}"


def cost_text(cost: Row) -> str:
    """Steps with their interval and time on this machine; of the stated one where it is stated."""
    if cost["trained_steps"] == 0:
        return f"no training step ({cost['strategy']}), {duration(cost['seconds_spent'])} in all"
    if is_number(cost["trained_steps"]):
        return f"{number(cost['trained_steps'])} steps trained, {duration(cost['seconds_spent'])} in all"
    if not is_number(cost["steps"]):
        return f"not known yet; {duration(cost['seconds_spent'])} so far"
    if not cost["steps"]:
        return f"no training step ({cost['strategy']})"
    share = f"{cost['interval']:.0%}, " if is_number(cost["interval"]) else ""
    late = number(round(cost["steps_high"])) if is_number(cost["steps_high"]) else "open"
    span = f" ({share}{number(round(cost['steps_low']))} to {late})" if is_number(cost["steps_low"]) else ""
    told = [f"{number(round(cost['steps']))} steps of {cost['strategy']}{span}"]
    if is_number(cost["hours"]):
        told.append(f"{_span(cost, 'hours')} on this machine")
    if is_number(cost["device_hours"]):
        told.append(f"{_span(cost, 'device_hours')} on the stated one")
    return ", ".join(told)


def _span(cost: Row, name: str) -> str:
    low, high = (cost[f"{name}{end}"] for end in ("_low", "_high"))
    ends = f" ({duration(low * HOUR)} to {duration(high * HOUR)})" if is_number(low) and is_number(high) else ""
    return duration(cost[name] * HOUR) + ends


def risk_text(risk: Row) -> str:
    """Probabilities, extrapolation, open questions, and gates near their threshold."""
    told = [
        f"{PROBABILITIES.get(key, key.replace('_', ' '))}: {value:.2f}" for key, value in risk["probabilities"].items()
    ]
    if risk["extrapolated"]:
        told.append("the forecast is extrapolated: its probability is not calibrated for a core of this size")
    if risk["failed"]:
        told.append(f"failed: {', '.join(row['gate'] for row in risk['failed'])}")
    if risk["open"]:
        told.append(f"open: {', '.join(row['gate'] for row in risk['open'])}")
    if risk["near_threshold"]:
        told.append(f"near the threshold: {', '.join(row['gate'] for row in risk['near_threshold'])}")
    return "; ".join(told) or "no open question"
