"""A validation for machines that build: JUnit XML, and a Markdown summary for a pull request or a job page."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sanakit.files import output

SIGNS = {"pass": "✅", "fail": "❌", "inconclusive": "❔"}
FIXED = (
    "component/meaning",
    "smoke/control",
    "smoke/samples",
    "full/samples",
)  # read a fixed number of words or images
CAUSE = "likely-cause"  # a reading's name
FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0


def write_junit(validation: Mapping[str, Any], path: Path) -> None:
    """One suite a stage, one case a gate; an inconclusive gate is a skipped case, one that raised an error."""
    suites = ElementTree.Element("testsuites")
    for stage, result in validation["stages"].items():
        verdicts = ["error" if g.get("error") else g["verdict"] for g in result["gates"]]
        suite = ElementTree.SubElement(
            suites,
            "testsuite",
            name=FORBIDDEN.sub("\ufffd", stage),
            tests=str(len(verdicts)),
            failures=str(verdicts.count("fail")),
            errors=str(verdicts.count("error")),
            skipped=str(verdicts.count("inconclusive")),
            time=str(result["seconds"]),
        )
        for gate in result["gates"]:
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"sanakit.{stage}", name=FORBIDDEN.sub("\ufffd", gate["gate"])
            )
            if gate["verdict"] != "pass":
                message = FORBIDDEN.sub("\ufffd", f"{gate['code']}: {told(gate)}. {advice(gate)}")
                outcome = "error" if gate.get("error") else "failure" if gate["verdict"] == "fail" else "skipped"
                ElementTree.SubElement(case, outcome, message=message)
    with output(path) as temporary:
        ElementTree.ElementTree(suites).write(temporary, encoding="utf-8", xml_declaration=True)


def write_markdown(validation: Mapping[str, Any], path: Path) -> None:
    with output(path) as temporary:
        temporary.write_text(markdown(validation), encoding="utf-8")


def markdown(validation: Mapping[str, Any]) -> str:
    """Verdict, then what did not pass, then every gate folded away."""
    verdict = validation["verdict"]
    title = f"{verdict}: {cell(validation['candidate'])} in {cell(validation['base'])}"
    lines = [f"## {SIGNS.get(verdict, '')} {title}", ""]
    if decision := validation.get("decision"):
        lines += [f"Decision: **{cell(decision['answer'])}**. {cell(decision['reason'])}", ""]
    gates = [gate for stage in validation["stages"].values() for gate in stage["gates"]]
    open_gates = [gate for gate in gates if gate["verdict"] != "pass"]
    head = ["| | gate | reads | threshold | what to do |", "|---|---|---|---|---|"]

    def row(g: Mapping[str, Any]) -> str:
        return (
            f"| {SIGNS[g['verdict']]} | `{cell(g['gate'])}` {cell(g['code'])} | {cell(g['metric'])}: {reading(g)} "
            f"| {bound(g)} | {cell(advice(g) if g['verdict'] != 'pass' else '')} |"
        )

    lines += [*head, *map(row, open_gates), ""] if open_gates else [f"All {len(gates)} gates passed.", ""]
    seconds = sum(stage["seconds"] for stage in validation["stages"].values())
    policy = validation.get("policy", {}).get("name", "default")
    lines += [f"{len(gates)} gates, {seconds:.0f} s, policy {cell(policy)}. Next: `{cell(validation['next'])}`", ""]
    lines += ["<details><summary>Every gate</summary>", "", *head, *map(row, gates), "", "</details>", ""]
    return "\n".join(lines)


def told(gate: Mapping[str, Any]) -> str:
    return gate["metric"] if gate["value"] is None else f"{gate['metric']} is {reading(gate)}, expected {bound(gate)}"


def bound(gate: Mapping[str, Any]) -> str:
    if gate["threshold"] is None:
        return ""
    senses: dict[bool | None, str] = {True: "at least ", False: "at most "}
    sense = senses.get(gate.get("at_least"), "threshold ")
    if gate.get("above"):
        sense = "above "
    return f"{sense}{gate['threshold']:.4g}"


def reading(gate: Mapping[str, Any]) -> str:
    if gate["value"] is None:
        return ""
    span = "" if gate["ci_low"] is None else f" [{gate['ci_low']:.3g}, {gate['ci_high']:.3g}]"
    return f"{gate['value']:.4g}{span}"


def advice(gate: Mapping[str, Any]) -> str:
    """The hint; for a gate that could not be decided, how many samples would, and where they are asked for."""
    needed, have = gate.get("samples_needed"), gate.get("samples")
    more = f"about {needed - have:,} more samples than {have:,} would decide" if needed and have else ""
    if more and (option := samples_option(gate["gate"])):
        more += f": --set {option}={needed}"
    return "; ".join(part for part in (gate["hint"], more) if part)


def in_doubt(strategy: Mapping[str, Any]) -> str:
    """What is said where the race could not tell, with the steps of a race that would tell more. Else empty."""
    if strategy.get("conclusive", True):
        return ""
    probability = strategy.get("probability")  # runs of earlier versions have none
    why = "its interval is open" if probability is None else f"right with probability {share(probability)}"
    more = f"a race of --budget-steps {strategy['steps_that_tell']} would tell more"
    return f"recommendation inconclusive: {strategy['recommended']}, {why}; {more}"


def share(probability: float) -> str:
    """.86; never rounded to certainty."""
    if probability >= 1 or probability <= 0:
        return f"{probability:.0f}"
    return f"{min(max(probability, 0.01), 0.99):.2f}".removeprefix("0")


def likely_causes(readings: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence for each reading of a comparison that names a cause, not a statistic."""
    return [
        f"Likely cause in {r['where']}: {r['title']} ({r['value']:.0%} of what moved)."
        for r in readings
        if r["name"] == CAUSE
    ]


def samples_option(gate: str) -> str:
    """The key of the configuration that says how many images a gate reads; empty where the number is fixed, and for a
    plugin's stage."""
    if gate in FIXED:
        return ""
    stage = gate.partition("/")[0]
    if stage in ("smoke", "full"):
        return "smoke.held_out"
    return "component.num_images" if stage in ("component", "tune") else ""


def margin(gate: Mapping[str, Any]) -> float | None:
    """How far the value is on the good side of the threshold, in shares of the threshold;
    None where that means nothing."""
    if gate.get("at_least") is None or not gate["threshold"]:
        return None
    way = gate["value"] - gate["threshold"] if gate["at_least"] else gate["threshold"] - gate["value"]
    return float(way / abs(gate["threshold"]))


def cell(text: Any) -> str:
    """One cell of a Markdown table: markup and line ends are harmless."""
    plain = re.sub(r"\s+", " ", str(text)).replace("\\", "\\\\").replace("|", "\\|").replace("`", "'")
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("[", "\\[")
