"""A folder as Hugging Face's imagefolder: images, and metadata.csv or metadata.jsonl whose `file_name` names each."""

from pathlib import Path

from sanakit.data.part import Plan
from sanakit.data.readers.folder import is_image, walk
from sanakit.data.readers.manifest import plan_manifest
from sanakit.data.survey import Survey

NAMES = ("metadata.jsonl", "metadata.csv")


def find_metadata(folder: Path) -> Path | None:
    """The manifest of an imagefolder, in the folder or in its split `train`; None for any other folder."""
    places = [place / name for place in (folder, folder / "train") for name in NAMES]
    return next((path for path in places if path.is_file() and "file_name" in _beginning(path)), None)


def plan_imagefolder(folder: Path, metadata: Path) -> Plan:
    """The rows of the manifest; images that it does not name are counted as ignored."""
    plan = plan_manifest(metadata)
    plan.source = str(folder)
    named = {row[0] for part in plan.parts for row in part.payload["rows"]}
    named |= {row["name"] for row in plan.ledger}
    seen = Plan(source=str(folder))
    for name, path in walk(metadata.parent, seen):
        if path != metadata and name not in named and _is_image(name, path):
            plan.survey.ignored.add(f"images that {metadata.name} does not name", name)
    return plan


def _is_image(name: str, path: Path) -> bool:
    try:
        return is_image(name, path, Survey())
    except (OSError, ValueError):
        return False


def _beginning(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4096).decode("utf-8", "replace")
    except OSError:
        return ""
