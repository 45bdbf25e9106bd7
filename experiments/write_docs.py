"""Write the generated pages: docs/codes.md from the catalogue, docs/gates.md from the registry, the thresholds and the
measured results, docs/zoo.md from the records of components, docs/decision-study.md from the study's results and
its plan, the tables of docs/performance.md and docs/scale.md from their results.

python experiments/write_docs.py
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from sanakit.checks import GATES
from sanakit.checks.policy import rules
from sanakit.contracts import LatentStats, TextSpec
from sanakit.errors import CODES
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.vaes import VAES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
sys.path.append(str(ROOT / "experiments"))

import study_page  # noqa: E402
from study_page import read  # noqa: E402


def codes() -> str:
    """docs/codes.md, whole."""
    lines = [
        "# Codes",
        "",
        (
            "Written by `python experiments/write_docs.py`; `sanakit explain CODE` says the same. Gates: "
            "[gates.md](gates.md)."
        ),
        "",
        "| code | title | why | fix |",
        "|---|---|---|---|",
    ]
    lines += [f"| {code} | {cell(e.title)} | {cell(e.why)} | {cell(e.fix)} |" for code, e in CODES.items()]
    return "\n".join(lines) + "\n"


GATES_INTRO = """# Gates

Written by `python experiments/write_docs.py` from the registry, `sanakit/checks/policy.py` and
`experiments/results/`.

A gate is a rule on one number. A value with an interval (90%, bootstrap over images or prompts) that straddles the
threshold is **inconclusive** (exit code 4), never a pass; it says about how many more samples would decide, and by
which key they are asked for (an interval of fewer than 8 values
is always inconclusive): `component.num_images` (192 held-out images or captions), `smoke.held_out` (128 images of
smoke and full), `smoke.samples` (8 drawn images), each of them `--set KEY=N` and at most what the held-out split has.
The first gate that fails in a stage names the cause: causes stand before what follows from them.

`--policy default|strict|FILE` chooses the thresholds. A file overrides single gates; unknown keys are refused:

```yaml
from: strict
thresholds:
  component/truncation: 0.1
```

The policy is recorded in `validation.json` and is part of a stage's fingerprint: another policy decides again on what
was measured, nothing is measured twice.

A component alone, with no base: `sanakit validate --stage component --base none --vae NAME` (or `--text-encoder`).
For machines that build: `--json`, `--junit FILE`, `--markdown FILE`.
"""


def render_gates() -> str:
    """docs/gates.md, whole."""
    return "\n".join([GATES_INTRO, *thresholds(), *catalogue(read("fault_catalogue.json"))]) + "\n"


def thresholds() -> list[str]:
    calibration = read("gate_calibration.json")
    measured = {row["gate"]: row for row in calibration.get("gates", [])}
    faults = read("fault_catalogue.json").get("faults", [])
    lines = [
        "## Thresholds, and where they come from",
        "",
        "**A/A**: clean systems, "
        f"{sum(row['runs'] for row in measured.values()):,} readings of {len(calibration.get('systems', []))} "
        f"(`{calibration.get('command', '')}`; the systems are in `experiments/faults/clean_runs.py`). Of the system "
        "nearest to the threshold, q is the 95% quantile of its readings towards it and s the way from its median to "
        "q. A strict threshold leaves at least s beyond q, a default one 2 s, and both stand short of the nearest "
        "planted fault. **Definition**: the threshold is what the words mean; clean readings are there to see that it "
        "holds. The readings of `smoke/samples` and `full/samples` are of 8 samples each; the gates draw 32 since, "
        "which narrows their intervals.",
        "",
        "| gate | asks whether | default | strict | comes from | readings | q of clean systems | nearest fault |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in GATES.entries().values():
        record = rules()[entry.name]
        default, strict = record.default, record.strict
        row = measured.get(entry.name)
        source = f"definition: {record.definition}" if record.definition else "A/A"
        runs = f"{row['runs']} of {row['systems']}" if row else ""
        clean = f"{row['quantile']:.3g}, {cell(row['worst_system'])}" if row else ""
        near = nearest_fault(entry.name, default, faults)
        lines.append(
            f"| `{entry.name}` | {cell(entry.title)} | {default:g} | {strict:g} | {cell(source)} | {runs} | {clean} "
            f"| {'' if near is None else f'{near:.3g}'} |"
        )
    failed = [f"`{row['gate']}` {row['failed']} of {row['runs']}" for row in measured.values() if row["failed"]]
    undecided = [
        f"`{row['gate']}` {row['undecided']} of {row['runs']}" for row in measured.values() if row["undecided"]
    ]
    lines += [
        "",
        f"Evaluated by `default`, clean readings failed: {', '.join(failed) or 'none'}. Could not be decided: "
        f"{', '.join(undecided) or 'none'}.",
    ]
    if calibration.get("missing"):
        lines += ["", f"Not measured yet: {', '.join(calibration['missing'])}."]
    return [*lines, ""]


def nearest_fault(gate: str, threshold: float, faults: list[dict[str, Any]]) -> float | None:
    """Reading of the planted fault that this gate must catch, the one nearest to its threshold."""
    values = [row["value"] for row in faults if row["gate"] == gate and "value" in row]
    return min(values, key=lambda value: abs(value - threshold), default=None)


def catalogue(results: dict[str, Any]) -> list[str]:
    if not results:
        return []
    s = results["summary"]
    lines = [
        "## The fault catalogue",
        "",
        f"Small real systems, each broken in one way (`experiments/faults/faults.py`): {s['caught']} of {s['faults']} "
        f"caught, {s['named_cause']} by what names the cause, {s['caught_before_full']} before any step beyond smoke. "
        f"Clean systems: {s['alarms']} alarms in {s['clean']}. `{results['command']}`",
        "",
        "| fault | public threads | caught by | code | stage | caught | cause named |",
        "|---|---|---|---|---|---|---|",
    ]

    def yes(value):
        return "yes" if value else "**no**"

    for row in results["faults"]:
        lines.append(
            f"| {cell(row['fault'])} | {cell(row['threads'])} | {row['gate']} | {row['code']} | {row['stage']} "
            f"| {yes(row['caught'])} | {yes(row['named_cause'])} |"
        )
    lines += ["", "| clean system | verdict | not passed |", "|---|---|---|"]
    lines += [
        f"| {cell(r['system'])} | {r['verdict']} | {cell(', '.join(r['not_passed']))} |" for r in results["clean"]
    ]
    return lines


def cell(text: str) -> str:
    return re.sub(r"[|]", "/", text).replace("[", "\\[")


def zoo() -> str:
    lines = [
        "# The zoo",
        "",
        "Written by `python experiments/write_docs.py` from the records; `sanakit describe NAME` shows one. Every name",
        "has a tiny twin built from its real class, on which the contract tests run. Nothing is fetched before a name",
        "is used; `hub:` needs a network, and where a title says gated, `hf auth login`. A licence that reads *see",
        "repository* is not known here: check before you use it. No published weights were loaded for want of a",
        "network: shapes and readings are tested on the twins. A commit behind a name is what is fetched.",
        "",
        "## VAEs",
        "",
        "z: raw latents. Statistics that config.json states win over the record's.",
        "",
        "| name | what | from | latents | licence |",
        "|---|---|---|---|---|",
    ]
    for name, entry in VAES.entries().items():
        component = VAES.get(name)
        source = "in this package" if entry.embedded else _source(component)
        lines.append(f"| `{name}` | {entry.title} | {source} | {_affine(component)} | {entry.licence} |")
    lines += [
        "",
        "## Text encoders",
        "",
        "| name | what | from | tokens | reading | licence |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in TEXT_ENCODERS.entries().items():
        component = TEXT_ENCODERS.get(name)
        source, spec = _source(component), component.spec
        lines.append(
            f"| `{name}` | {entry.title} | {source} | {spec.max_tokens} | {_reading(spec)} | {entry.licence} |"
        )
    return "\n".join(lines) + "\n"


def _source(component: Any) -> str:
    hub = getattr(component, "hub", None)
    pinned = f" at {component.revision[:7]}" if getattr(component, "revision", None) else ""
    return f"`hub:{hub}`{pinned}" if hub else "a package"


def _affine(component: Any) -> str:
    stats: LatentStats | None = getattr(component, "stats", None)
    if stats is None or getattr(component, "stats_with_weights", False):
        return "statistics beside the weights"
    if len(stats.mean) > 1 or len(stats.std) > 1:
        return "(z - mean) / std per channel"
    scale = f"{1 / stats.std[0]:.5g}"
    if stats.mean[0]:
        return f"(z - {stats.mean[0]:g}) * {scale}"
    return "z" if scale == "1" else f"z * {scale}"


def _reading(spec: TextSpec) -> str:
    layers = {"last": "last layer", "mean": "mean of normed layers"}
    parts = [layers.get(str(spec.layer), f"layer {spec.layer}")]
    if spec.instruction:
        parts.append("Sana's instruction")
    if spec.select == "first-last":
        parts.append("token 0 and the last 299")
    if spec.attend_padding:
        parts.append("attends to padding")
    if spec.lower_case:
        parts.append("lower case")
    return ", ".join(parts)


def performance() -> str:
    """docs/performance.md with its table filled anew; the text around it, and rows of other studies, stay."""
    page = (ROOT / "docs" / "performance.md").read_text()
    rows = {}
    for row in json.loads((RESULTS / "performance.json").read_text()):
        values = f"{row['ratio']:.3g} | {row['low']:.3g} to {row['high']:.3g} | {row['meaning']} | {row['peer']}"
        rows[row["name"]] = f"| {row['name']} | {values} | {row['date']} | `{row['command']}` |"
    head, line, rest = page.partition("|---|---|---|---|---|---|---|\n")
    table, blank, after = rest.partition("\n\n")
    lines = {match[1]: match[0] for match in re.finditer(r"^\| (.+?) \|.*$", table, re.M)} | rows
    return head + line + "\n".join(lines.values()) + blank + after


def scale() -> str:
    """docs/scale.md with its measured table filled anew; the text around it stays."""
    page = (ROOT / "docs" / "scale.md").read_text()
    lines = ["| what | goal | value | met | measured |", "|---|---|---|---|---|"]
    for row in read("scale.json").values():
        of = f"{row['date']}, load {row['load']:g} on {row['cores']} cores"
        for told in row["lines"]:
            met = "yes" if told["met"] else "**no**"
            lines.append(
                f"| {told['what']} | {told['goal']} | {told['value']:,} | {met} | {cell(told['measured'])} ({of}) |"
            )
    if len(lines) == 2:
        lines = ["Not measured yet."]
    head, begin, rest = page.partition("<!-- measured: begin -->\n")
    _, end, after = rest.partition("<!-- measured: end -->")
    return head + begin + "\n".join(lines) + "\n" + end + after


PAGES = {
    "README.md": study_page.readme,
    "docs/codes.md": codes,
    "docs/decision-study.md": study_page.decisions,
    "docs/gates.md": render_gates,
    "docs/performance.md": performance,
    "docs/scale.md": scale,
    "docs/zoo.md": zoo,
}

if __name__ == "__main__":
    for page, render in PAGES.items():
        (ROOT / page).write_text(render())
        print(page)
