"""A page of docs/ as a notebook: text becomes text, blocks of Python and bash become cells; optionally executed.

python experiments/make_notebook.py docs/library.md library.ipynb [--execute]

--execute runs every cell in the folder of the notebook and keeps its outputs; it needs nbclient and ipykernel
(`nox -s notebook` installs them). A cell that raises ends the script with its traceback.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LONGEST = 3600  # seconds of a cell


def cells_of(page: str) -> list[dict[str, Any]]:
    """Cells of the notebook format 4.5. Other blocks, such as plain text, stay part of the text around them."""
    cells: list[dict[str, Any]] = []

    def add(kind: str, source: str) -> None:
        if source.strip():
            facts: dict[str, Any] = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}}
            code = {"execution_count": None, "outputs": []} if kind == "code" else {}
            cells.append(facts | code | {"source": source.strip("\n")})

    position = 0
    for match in BLOCK.finditer(page):
        add("markdown", page[position : match.start()])
        add("code", match[2] if match[1] == "python" else f"%%bash\n{match[2]}")
        position = match.end()
    add("markdown", page[position:])
    return cells


def notebook_of(page: str) -> dict[str, Any]:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells_of(page), "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def execute(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with the outputs of its cells, run in `folder`."""
    import nbclient
    import nbformat

    node = nbformat.from_dict(notebook)
    nbformat.validate(node)
    nbclient.NotebookClient(node, timeout=LONGEST, resources={"metadata": {"path": str(folder)}}).execute()
    return dict(node)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--execute", action="store_true")
    given = parser.parse_args()
    notebook = notebook_of(given.page.read_text(encoding="utf-8"))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    if given.execute:
        notebook = execute(notebook, given.out.resolve().parent)
    given.out.write_text(json.dumps(notebook, indent=1) + "\n", encoding="utf-8")
    print(f"{given.out}: {sum(cell['cell_type'] == 'code' for cell in notebook['cells'])} cells of code")


if __name__ == "__main__":
    main()
