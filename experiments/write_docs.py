"""Write docs/codes.md, the reference of error and gate codes, from the catalogue and the registry.

python experiments/write_docs.py
"""

import re
from pathlib import Path

from sanakit.errors import CODES
from sanakit.gates import GATES

OUT = Path("docs/codes.md")


def render() -> str:
    """The whole page."""
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


if __name__ == "__main__":
    OUT.write_text(render())
    print(OUT)
