"""Hooks of the documentation site (mkdocs.yml): a page that `nox -s notebook` has executed links to what it gave."""

from pathlib import Path
from typing import Any

EXECUTED = Path(__file__).parent.parent / "build" / "notebook"
PLACE = "notebooks"  # of the site


def notebook_files(folder: Path = EXECUTED) -> dict[str, list[Path]]:
    """Of every executed page its notebook and the page that shows it."""
    shown = sorted(folder.glob("*.html"))
    return {path.stem: [path.with_suffix(".ipynb"), path] for path in shown if path.with_suffix(".ipynb").is_file()}


def on_files(files: Any, config: Any, **more: Any) -> Any:
    from mkdocs.structure.files import File

    for paths in notebook_files().values():
        for path in paths:
            files.append(File.generated(config, f"{PLACE}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **more: Any) -> str:
    return with_link(markdown, Path(page.file.src_uri).stem, notebook_files())


def with_link(markdown: str, stem: str, executed: dict[str, list[Path]]) -> str:
    """The page with links under its title, where it was executed."""
    if stem not in executed:
        return markdown
    title, _, rest = markdown.partition("\n")
    links = f"[what every line printed]({PLACE}/{stem}.html), [the notebook]({PLACE}/{stem}.ipynb)"
    return f"{title}\n\nThis page was executed: {links}.\n{rest}"
