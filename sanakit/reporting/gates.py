"""Gates of the report: one row each, and the sentence that says why the verdict is what it is."""

from collections.abc import Sequence
from typing import Any

from sanakit.reporting.charts import is_number, margin_bar
from sanakit.reporting.ci import advice, bound
from sanakit.reporting.page import number

Row = dict[str, Any]

OPEN_SHOWN = 3

# what a row says when a key is left out; templates are strict
GATE = dict.fromkeys(("value", "ci_low", "ci_high", "threshold")) | {
    "code": "",
    "metric": "",
    "hint": "",
    "verdict": "inconclusive",
    "at_least": None,
    "samples": None,
    "samples_needed": None,
}


def stage_rows(name: str, result: Row) -> Row:
    gates = [GATE | gate for gate in result.get("gates") or []]
    for gate in gates:
        gate["advice"] = "" if gate["verdict"] == "pass" else advice(gate)
        gate["bound"] = bound(gate) if is_number(gate["threshold"]) else "–"
        gate["told"] = f"{gate['metric'] or gate['gate']} is {number(gate['value'])}, expected {gate['bound']}."
        if gate.get("error"):
            gate["told"] = f"{gate['gate']} could not be evaluated."
        gate["bar"] = margin_bar(gate["value"], gate["ci_low"], gate["ci_high"], gate["threshold"])
    row = {"name": name, "verdict": result["verdict"], "gates": gates, "seconds": result.get("seconds")}
    return row | {"not_applied": result.get("not_applied") or {}}


def why(verdict: str, stages: Sequence[Row]) -> str:
    """One sentence: what failed, else what could not be decided, else that all is well."""
    gates = [gate for stage in stages for gate in stage["gates"]]
    for kind, text in (("fail", "failed"), ("inconclusive", "could not be decided")):
        names = [f"{g['gate']} ({g['code']})" if g["code"] else g["gate"] for g in gates if g["verdict"] == kind]
        if names:
            return f"{len(names)} of {len(gates)} gates {text}: {', '.join(names)}."
    if not gates:
        return "No gate has been measured."
    return (
        f"Every gate passed: {len(gates)} of {len(gates)}."
        if verdict == "pass"
        else (f"Every measured gate passed ({len(gates)}), but the verdict needs more than these.")
    )


def open_gates(verdict: str, stages: Sequence[Row]) -> list[Row]:
    """The gates that the verdict hangs on, the first few: a cause stands before what follows from it."""
    return [gate for stage in stages for gate in stage["gates"] if gate["verdict"] == verdict != "pass"][:OPEN_SHOWN]
