"""A page of docs/ as a notebook: text becomes text, blocks of Python and bash become cells; optionally executed.

python experiments/make_notebook.py docs/library.md library.ipynb [--execute] [--html]

--execute runs every cell in an empty folder and keeps its outputs; it needs nbclient and ipykernel. --html writes the
page that shows the notebook beside it; it needs nbconvert (`nox -s notebook` installs all three). A cell that raises,
or a command that ends in an error, ends the script; a verdict such as "Not yet" is no error.
"""

import argparse
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((\w[\w-]*)\.md(#[\w-]+)?\)")
ERRORS = re.compile(r"error\[SK\d+\].*|^Usage: .*|command not found.*", re.MULTILINE)
LONGEST = 3600  # seconds of a cell
ON_A_PAGE = {  # what a command of a cell sees: no bars, and tables as wide as the page
    "COLUMNS": "110",
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "TQDM_DISABLE": "1",
}
VERDICTS = "%%bash --no-raise-error\n"  # exit codes 1 and 4 are verdicts


def cells_of(page: str) -> list[dict[str, Any]]:
    """Cells of the notebook format 4.5. Other blocks, such as plain text, stay part of the text around them; links to
    other pages lead to those of the documentation site, whose folder notebooks/ the notebook belongs in."""
    cells: list[dict[str, Any]] = []

    def add(kind: str, source: str) -> None:
        if source.strip():
            facts: dict[str, Any] = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}}
            code = {"execution_count": None, "outputs": []} if kind == "code" else {}
            cells.append(facts | code | {"source": source.strip("\n")})

    position = 0
    for match in BLOCK.finditer(page):
        add("markdown", linked(page[position : match.start()]))
        add("code", match[2] if match[1] == "python" else VERDICTS + match[2])
        position = match.end()
    add("markdown", linked(page[position:]))
    return cells


def linked(text: str) -> str:
    return LINK.sub(lambda match: f"](../{match[1]}.html{match[2] or ''})", text)


def notebook_of(page: str) -> dict[str, Any]:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells_of(page), "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def execute(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with the outputs of its cells, run in `folder`. Raises RuntimeError for a command that ended in an
    error, nbclient's CellExecutionError for a cell of Python."""
    import nbclient
    import nbformat

    node = nbformat.from_dict(notebook)
    nbformat.validate(node)
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(node, timeout=LONGEST, resources=resources, coalesce_streams=True)
    client.execute(env=os.environ | ON_A_PAGE)
    refuse_errors(node["cells"])
    return dict(node)


def refuse_errors(cells: list[dict[str, Any]]) -> None:
    """Raises RuntimeError for the first cell whose command printed an error."""
    for cell in cells:
        shown = "".join(output.get("text", "") for output in cell.get("outputs", ()))
        if error := ERRORS.search(shown):
            raise RuntimeError(f"{error[0]}\nin the cell\n{cell['source']}")


def html_of(notebook: dict[str, Any], title: str) -> str:
    """One page that shows a notebook and fetches nothing: formulas and widgets, which would, do not occur."""
    import nbconvert
    import nbformat

    node = nbformat.from_dict(notebook)
    node["metadata"]["title"] = title
    exporter = nbconvert.HTMLExporter(template_name="classic", mathjax_url="", require_js_url="", jquery_url="")
    page: str = exporter.from_notebook_node(node)[0]
    return re.sub(r'<script src="(https?:)?"></script>|<script[^>]* src="https?:[^>]*></script>', "", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--execute", action="store_true")
    parser.add_argument("--html", action="store_true")
    given = parser.parse_args()
    notebook = notebook_of(given.page.read_text(encoding="utf-8"))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    if given.execute:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(notebook, Path(folder))
    given.out.write_text(json.dumps(notebook, indent=1) + "\n", encoding="utf-8")
    if given.html:
        given.out.with_suffix(".html").write_text(html_of(notebook, given.page.stem), encoding="utf-8")
    print(f"{given.out}: {sum(cell['cell_type'] == 'code' for cell in notebook['cells'])} cells of code")


if __name__ == "__main__":
    main()
