"""Write docs/codes.md and docs/gates.md from the catalogue of codes, the registry of gates, their thresholds and the
measured results.

python experiments/write_docs.py
"""

import json
import re
from pathlib import Path
from typing import Any

from sanakit.errors import CODES
from sanakit.gates import GATES
from sanakit.gates.policy import THRESHOLDS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"


def render() -> str:
    """docs/codes.md, whole."""
    lines = [
        "# Codes",
        "",
        "Written by `python experiments/write_docs.py`; `sanakit explain CODE` says the same. Gates: [gates.md](gates.md).",
        "",
        "| code | title | why | fix |",
        "|---|---|---|---|",
    ]
    lines += [f"| {code} | {cell(e.title)} | {cell(e.why)} | {cell(e.fix)} |" for code, e in CODES.items()]
    return "\n".join(lines) + "\n"


GATES_INTRO = """# Gates

Written by `python experiments/write_docs.py` from the registry, `sanakit/gates/policy.py` and
`experiments/results/`.

A gate is a rule on one number. A value with an interval (90%, bootstrap over pictures or prompts) that straddles the
threshold is **inconclusive** (exit code 4), never a pass; it says about how many more samples would decide. The first
gate that fails in a stage names the cause: causes stand before what follows from them.

`--policy default|strict|FILE` chooses the thresholds. A file overrides single gates; unknown keys are refused:

```yaml
from: strict
thresholds:
  component/truncation: 0.1
```

The policy is recorded in `validation.json` and is part of a stage's fingerprint: another policy judges again what was
measured, nothing is measured twice.

A component alone, with no base: `sanakit validate --stage component --base none --vae NAME` (or `--text-encoder`).
For machines that build: `--json`, `--junit FILE`, `--markdown FILE`.
"""


def render_gates() -> str:
    """docs/gates.md, whole."""
    return "\n".join([GATES_INTRO, *thresholds(), *catalogue(read("fault_catalogue.json"))]) + "\n"


def thresholds() -> list[str]:
    measured = {row["gate"]: row for row in read("gate_calibration.json").get("gates", [])}
    lines = [
        "## Thresholds",
        "",
        "Worst clean reading: A/A runs of clean systems on random halves of the same pictures "
        "(`experiments/calibrate_gates.py`): mean of the system nearest to the threshold, with the 95% bootstrap interval "
        "over halves, and the single worst half of all.",
        "",
        "| gate | asks whether | default | strict | worst clean reading | worst half |",
        "|---|---|---|---|---|---|",
    ]
    for entry in GATES.entries().values():
        default, strict = THRESHOLDS[entry.name]
        row = measured.get(entry.name)
        clean = f"{row['worst']:.3g} [{row['ci_low']:.3g}, {row['ci_high']:.3g}] {row['worst_system']}" if row else ""
        half = f"{row['worst_half']:.3g}" if row else ""
        lines.append(f"| `{entry.name}` | {cell(entry.title)} | {default:g} | {strict:g} | {clean} | {half} |")
    return [*lines, ""]


def catalogue(found: dict[str, Any]) -> list[str]:
    if not found:
        return []
    s = found["summary"]
    lines = [
        "## The fault catalogue",
        "",
        f"Small real systems, each broken in one way (`experiments/faults.py`): {s['caught']} of {s['faults']} caught, "
        f"{s['named_cause']} by what names the cause, {s['caught_before_full']} before any step beyond smoke. "
        f"Clean systems: {s['alarms']} alarms in {s['clean']}. `{found['command']}`",
        "",
        "| fault | public threads | caught by | code | stage | caught | cause named |",
        "|---|---|---|---|---|---|---|",
    ]
    yes = lambda value: "yes" if value else "**no**"
    for row in found["faults"]:
        lines.append(
            f"| {cell(row['fault'])} | {cell(row['threads'])} | {row['gate']} | {row['code']} | {row['stage']} "
            f"| {yes(row['caught'])} | {yes(row['named_cause'])} |"
        )
    lines += ["", "| clean system | verdict | not passed |", "|---|---|---|"]
    lines += [f"| {cell(r['system'])} | {r['verdict']} | {cell(', '.join(r['not_passed']))} |" for r in found["clean"]]
    return lines


def read(name: str) -> dict[str, Any]:
    path = RESULTS / name
    return json.loads(path.read_text()) if path.is_file() else {}


def cell(text: str) -> str:
    return re.sub(r"[|]", "/", text).replace("[", "\\[")


PAGES = {"docs/codes.md": render, "docs/gates.md": render_gates}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (ROOT / page).write_text(write())
        print(page)
