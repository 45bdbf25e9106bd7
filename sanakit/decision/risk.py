"""What may go wrong: the forecast's probabilities, open questions, and gates that passed near their threshold."""

from collections.abc import Mapping, Sequence
from typing import Any

from sanakit.decision.cost import recommended

Row = Mapping[str, Any]
NEAR = 0.1  # of the threshold
# an inconclusive gate of a short race is settled by the same question after the full run
SETTLED_BY = {
    "smoke/within-reach": "full/quality",
    "smoke/prompt-effect": "full/prompt-effect",
    "smoke/progress": "full/progress",
    "smoke/samples": "full/samples",
}
PROBABILITY = "probability"


def open_gates(gates: Sequence[Row]) -> list[Row]:
    """Gates that could not be decided and that no later gate has settled."""
    passed = {gate["gate"] for gate in gates if gate["verdict"] == "pass"}
    undecided = [gate for gate in gates if gate["verdict"] == "inconclusive"]
    return [gate for gate in undecided if SETTLED_BY.get(gate["gate"]) not in passed]


def risk_of(gates: Sequence[Row], strategy: Row, *, trained: bool) -> dict[str, Any]:
    """trained: stage full is done, so that nothing is forecast any more."""
    return {
        "probabilities": {} if trained else probabilities(strategy),
        "extrapolated": None if trained else extrapolated(strategy),
        "failed": [{"gate": g["gate"], "code": g.get("code", "")} for g in gates if g["verdict"] == "fail"],
        "open": _open(gates, strategy, trained=trained),
        "near_threshold": [row for gate in gates if (row := _near(gate))],
    }


def _open(gates: Sequence[Row], strategy: Row, *, trained: bool) -> list[dict[str, str]]:
    """Undecided gates, and the race where it could not tell."""
    questions = [{"gate": g["gate"], "code": g.get("code", ""), "hint": g.get("hint") or ""} for g in open_gates(gates)]
    if not trained and not strategy.get("conclusive", True):
        questions.append({"gate": "race", "code": "", "hint": why_not_told(strategy)})
    return questions


def why_not_told(strategy: Row) -> str:
    """Of a race that could not tell."""
    name, sure = strategy.get("recommended"), strategy.get(PROBABILITY)
    if isinstance(sure, float):
        return f"{name} is the right strategy with probability {sure:.2f}"
    return f"the forecast of {name} has no late end"


def probabilities(strategy: Row) -> dict[str, float]:
    """What the forecast states of the recommendation: every number of strategy.json whose name speaks of a
    probability."""
    stated = {**recommended(strategy), **strategy}
    return {key: value for key, value in stated.items() if PROBABILITY in key and isinstance(value, float)}


def extrapolated(strategy: Row) -> bool | None:
    """Whether the forecast was made outside the range that it is calibrated for; None where nothing is said."""
    return bool(strategy["extrapolated"]) if "extrapolated" in strategy else None


def _near(gate: Row) -> dict[str, Any] | None:
    limit, value = gate.get("threshold"), gate.get("value")
    if gate["verdict"] != "pass" or not limit or value is None or gate.get("at_least") is None:
        return None
    room = (value - limit if gate["at_least"] else limit - value) / abs(limit)
    if not 0 < room < NEAR:  # on the threshold stands what is exact, such as every image once
        return None
    return {"gate": gate["gate"], "code": gate.get("code", ""), "value": value, "threshold": limit, "margin": room}
