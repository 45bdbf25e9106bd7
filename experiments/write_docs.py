"""Write the generated pages: docs/codes.md from the catalogue and the gates, docs/zoo.md from the records of components.

python experiments/write_docs.py
"""

import re
from pathlib import Path
from typing import Any

from sanakit.contracts import LatentStats, TextSpec
from sanakit.errors import CODES
from sanakit.gates import GATES
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.vaes import VAES


def codes() -> str:
    lines = [
        "# Codes",
        "",
        "Written by `python experiments/write_docs.py`; `sanakit explain CODE` says the same.",
        "",
        "| code | title | why | fix |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {code} | {e.title} | {e.why} | {e.fix} |".replace("[-1, 1]", "\\[-1, 1]") for code, e in CODES.items()
    ]
    lines += ["", "# Gates", "", "| gate | asks whether |", "|---|---|"]
    lines += [f"| `{e.name}` | {re.sub(r'[|]', '/', e.title)} |" for e in GATES.entries().values()]
    return "\n".join(lines) + "\n"


def zoo() -> str:
    lines = [
        "# The zoo",
        "",
        "Written by `python experiments/write_docs.py` from the records; `sanakit describe NAME` shows one. Every name has a",
        "tiny twin built from its real class, on which the contract tests run. Nothing is fetched before a name is used;",
        "`hub:` needs a network, and where a title says gated, `hf auth login`. A licence that reads *see repository* is not",
        "known here: look before you use it.",
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


PAGES = {"docs/codes.md": codes, "docs/zoo.md": zoo}

if __name__ == "__main__":
    for page, render in PAGES.items():
        Path(page).write_text(render())
        print(page)
