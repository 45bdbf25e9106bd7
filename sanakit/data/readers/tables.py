"""Tables of images: Parquet files (as the hub stores data sets) and folders of `datasets.save_to_disk`, read by
pyarrow; `hf:owner/name[:split]` through the package `datasets`. No code of a data set is ever run.

A row has `image` (bytes, or a struct of bytes and path as Hugging Face's Image feature keeps it), a caption column, and
perhaps `scores`, one a caption, and `captions_base` or `caption_base`, what the base reads in the captions' place.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sanakit.data.captions import BASE_KEYS, as_captions, as_scores, base_captions, kind_of
from sanakit.data.part import Part, Plan, examine, plan_files, stamp_of
from sanakit.data.places import Kind, Place, open_arrow
from sanakit.data.readers.sources import open_source, plan_sources
from sanakit.data.survey import Survey, reason_of
from sanakit.errors import SanakitError

CAPTIONS = ("captions", "caption", "text", "prompt")
BATCH = 256


def is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def plan_parquet(pattern: str, files: list[str] | None = None) -> Plan:
    """One file, or several by `{00000..00009}`, local or by an address; or `files`."""
    return plan_sources("parquet", pattern, files)


def plan_saved_dataset(folder: Path) -> Plan:
    """A folder of `Dataset.save_to_disk`; of a DatasetDict its split `train`, or the only one."""
    plan = Plan(source=str(folder))
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            if "train" not in splits and len(splits) != 1:
                raise SanakitError("SK0401", f"{folder} has splits {', '.join(splits)}: name one, {folder}/SPLIT")
            chosen = "train" if "train" in splits else splits[0]
            for split in splits:
                if split != chosen:
                    plan.survey.ignored.add(f"split {split}", split)
            folder = folder / chosen
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        for name in [str(entry["filename"]) for entry in state["_data_files"]]:
            if Path(name).name != name:
                raise SanakitError("SK0401", f"{folder / 'state.json'} names {name}, outside its folder")
            payload = {"source": str(folder / name), "label": name, "first": 0}
            plan.parts.append(plan_files("arrow", payload, [stamp_of(folder / name)]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SanakitError("SK0401", f"{folder} cannot be read: {type(error).__name__}: {error}") from error
    return plan


def plan_hub_dataset(reference: str) -> Plan:
    """`owner/name[:split]`, downloaded and cached by `datasets`. Raises SK0901 without the package, SK0902 for the
    hub."""
    try:
        import datasets
    except ImportError as error:
        raise SanakitError(
            "SK0901", f"hf:{reference} needs the package datasets", fix="pip install 'sanakit[datasets]'."
        ) from error
    name, _, split = reference.partition(":")
    plan = Plan(source=f"hf:{reference}")
    try:
        table = datasets.load_dataset(name, split=split or "train")
        _columns(table.column_names, f"hf:{name}", Survey())
        first = 0
        for path in [Path(entry["filename"]) for entry in table.cache_files]:
            payload = {"source": str(path), "label": name, "first": first}
            plan.parts.append(plan_files("arrow", payload, [stamp_of(path)]))
            first += len(open_arrow(str(path)))
    except (OSError, ValueError) as error:
        raise SanakitError("SK0902", f"hf:{reference}: {str(error).splitlines()[0]}") from error
    if first != len(table):
        raise SanakitError("SK0902", f"hf:{reference}: {first} of its {len(table)} rows lie on this disk")
    return plan


def fill_parquet(part: Part, payload: dict[str, Any]) -> None:
    """Read a Parquet file."""
    source = payload["source"]
    try:
        with open_source(source) as file:
            table = pq.ParquetFile(file)
            columns = _columns(table.schema_arrow.names, source, part.survey)
            _add(part, payload, Kind.PARQUET, table.iter_batches(BATCH, columns=columns))
    except (pa.ArrowException, OSError) as error:
        raise SanakitError("SK0401", f"{source} cannot be read: {error}") from error


def fill_arrow(part: Part, payload: dict[str, Any]) -> None:
    """Read an Arrow stream file."""
    source = payload["source"]
    try:
        with pa.memory_map(source) as file, pa.ipc.open_stream(file) as stream:
            columns = _columns(stream.schema.names, source, part.survey)
            _add(part, payload, Kind.ARROW, (batch.select(columns) for batch in stream))
    except (pa.ArrowException, OSError) as error:
        raise SanakitError("SK0401", f"{source} cannot be read: {type(error).__name__}: {error}") from error


def _columns(names: list[str], source: str, survey: Survey) -> list[str]:
    """The columns that are read; another one of captions is counted as ignored. Raises SK0401 where one is missing."""
    caption = next((c for c in CAPTIONS if c in names), None)
    if "image" not in names or caption is None:
        raise SanakitError(
            "SK0401", f"{source} has columns {', '.join(names)}; expected image and one of {', '.join(CAPTIONS)}"
        )
    for other in (c for c in CAPTIONS if c in names and c != caption):
        survey.ignored.add(f"columns {other} beside {caption}", source)
    return ["image", caption, *(c for c in ("scores", "name", *BASE_KEYS) if c in names)]


def _add(part: Part, payload: dict[str, Any], kind: Kind, batches: Iterable[pa.RecordBatch | pa.Table]) -> None:
    for number, row in enumerate(row for batch in batches for row in _rows(batch)):
        stated = row.get("name") if isinstance(row, dict) else None
        named = isinstance(stated, str | int) and stated != ""
        name = str(stated) if named else f"{payload['label']}/{payload.get('first', 0) + number}"
        try:
            if isinstance(row, ValueError):
                raise row
            image = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
            if not isinstance(image, bytes):
                raise ValueError(f"no image: {_without_bytes(row['image'])}")
            captions = as_captions(next(row[column] for column in CAPTIONS if column in row))
            facts = examine(image, Place(payload["source"], kind, number, len(image)))
            part.add(name, captions, facts, as_scores(row.get("scores")), base=base_captions(row))
        except ValueError as error:
            part.set_aside(name, reason_of(error))


def _rows(batch: pa.RecordBatch | pa.Table) -> list[Any]:
    """Rows as dictionaries, or a ValueError in the place of one whose text is no UTF-8."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) > 1:
            return [row for number in range(len(batch)) for row in _rows(batch.slice(number, 1))]
        return [ValueError(f"text that is not UTF-8: byte 0x{error.object[error.start]:02x}")]


def _without_bytes(image: Any) -> str:
    if isinstance(image, dict) and image.get("path"):
        return f"the row holds only the path {image['path']}"
    return f"the row holds {kind_of(image)}, expected bytes"
