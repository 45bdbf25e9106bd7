"""Tables of images: Parquet files (as the hub stores data sets) and folders of `datasets.save_to_disk`, read by
pyarrow; `hf:owner/name[:split]` through the package `datasets`. No code of a data set is ever run.

A row has `image` (bytes, or a struct of bytes and path as Hugging Face's Image feature keeps it), a caption column, and
perhaps `scores`, one a caption.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sanakit.data.captions import as_captions, as_scores, kind_of
from sanakit.data.readers.sources import expand, open_source
from sanakit.data.survey import Survey, reason_of
from sanakit.data.table import ImageDataset
from sanakit.errors import SanakitError

CAPTIONS = ("captions", "caption", "text", "prompt")
BATCH = 256


def is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def read_parquet_files(pattern: str) -> ImageDataset:
    """One file, or several by `{00000..00009}`, local or by an address."""
    dataset = ImageDataset(source=pattern, names=[], captions=[], images=[])
    for source in expand(pattern):
        try:
            with open_source(source) as file:
                table = pq.ParquetFile(file)
                columns = _columns(table.schema_arrow.names, source, dataset.survey)
                _add(dataset, source.rsplit("/", 1)[-1], table.iter_batches(BATCH, columns=columns))
        except (pa.ArrowException, OSError) as error:
            raise SanakitError("SK0401", f"{source} cannot be read: {error}") from error
    return dataset


def read_saved_dataset(folder: Path) -> ImageDataset:
    """A folder of `Dataset.save_to_disk`; of a DatasetDict its split `train`, or the only one."""
    dataset = ImageDataset(source=str(folder), names=[], captions=[], images=[])
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            if "train" not in splits and len(splits) != 1:
                raise SanakitError("SK0401", f"{folder} has splits {', '.join(splits)}: name one, {folder}/SPLIT")
            chosen = "train" if "train" in splits else splits[0]
            for split in splits:
                if split != chosen:
                    dataset.survey.ignored.add(f"split {split}", split)
            folder = folder / chosen
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        for name in [str(entry["filename"]) for entry in state["_data_files"]]:
            if Path(name).name != name:
                raise SanakitError("SK0401", f"{folder / 'state.json'} names {name}, outside its folder")
            with pa.memory_map(str(folder / name)) as source, pa.ipc.open_stream(source) as stream:
                columns = _columns(stream.schema.names, str(folder / name), dataset.survey)
                _add(dataset, name, (batch.select(columns) for batch in stream))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise SanakitError("SK0401", f"{folder} cannot be read: {type(error).__name__}: {error}") from error
    return dataset


def read_hub_dataset(reference: str) -> ImageDataset:
    """`owner/name[:split]`, downloaded and cached by `datasets`. Raises SK0901 without the package, SK0902 for the
    hub."""
    try:
        import datasets
    except ImportError as error:
        raise SanakitError(
            "SK0901", f"hf:{reference} needs the package datasets", fix="pip install 'sanakit[datasets]'."
        ) from error
    name, _, split = reference.partition(":")
    dataset = ImageDataset(source=f"hf:{reference}", names=[], captions=[], images=[])
    try:
        table = datasets.load_dataset(name, split=split or "train")
        columns = _columns(table.column_names, f"hf:{name}", dataset.survey)
        table = table.select_columns(columns).cast_column("image", datasets.Image(decode=False))
    except (OSError, ValueError) as error:
        raise SanakitError("SK0902", f"hf:{reference}: {str(error).splitlines()[0]}") from error
    _add(dataset, name, table.with_format("arrow").iter(BATCH))
    return dataset


def _columns(names: list[str], source: str, survey: Survey) -> list[str]:
    """The columns that are read; another one of captions is counted as ignored. Raises SK0401 where one is missing."""
    caption = next((c for c in CAPTIONS if c in names), None)
    if "image" not in names or caption is None:
        raise SanakitError(
            "SK0401", f"{source} has columns {', '.join(names)}; expected image and one of {', '.join(CAPTIONS)}"
        )
    for other in (c for c in CAPTIONS if c in names and c != caption):
        survey.ignored.add(f"columns {other} beside {caption}", source)
    return ["image", caption, *(["scores"] if "scores" in names else []), *(["name"] if "name" in names else [])]


def _add(dataset: ImageDataset, label: str, batches: Iterable[pa.RecordBatch | pa.Table]) -> None:
    for number, row in enumerate(row for batch in batches for row in _rows(batch)):
        stated = row.get("name") if isinstance(row, dict) else None
        name = str(stated) if isinstance(stated, str | int) and stated != "" else f"{label}/{number}"
        try:
            if isinstance(row, ValueError):
                raise row
            image = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
            if not isinstance(image, bytes):
                raise ValueError(f"no image: {_without_bytes(row['image'])}")
            captions = as_captions(next(row[column] for column in CAPTIONS if column in row))
            dataset.add(name, captions, image, as_scores(row.get("scores")))
        except ValueError as error:
            dataset.set_aside(name, reason_of(error))


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
