"""Tables of pictures: Parquet files (as the hub stores data sets) and folders of `datasets.save_to_disk`, read by pyarrow;
`hf:owner/name[:split]` through the package `datasets`. No code of a data set is ever run.

A row has `image` (bytes, or a struct of bytes and path as Hugging Face's Image feature keeps it), a caption column, and
perhaps `scores`, one a caption.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sanakit.data.base import Pictures
from sanakit.data.files import expand, open_source
from sanakit.errors import SanakitError

CAPTIONS = ("captions", "caption", "text", "prompt")
BATCH = 256


def is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def read_parquet_files(pattern: str) -> Pictures:
    """One file, or several by `{00000..00009}`, local or by an address."""
    pictures = Pictures(source=pattern, names=[], captions=[], images=[])
    for source in expand(pattern):
        try:
            with open_source(source) as file:
                table = pq.ParquetFile(file)
                columns = _columns(table.schema_arrow.names, source)
                rows = (r for b in table.iter_batches(BATCH, columns=columns) for r in b.to_pylist())
                _add(pictures, source.rsplit("/", 1)[-1], rows)
        except (pa.ArrowException, OSError) as error:
            raise SanakitError("SK0401", f"{source} cannot be read: {error}") from error
    return pictures


def read_saved_dataset(folder: Path) -> Pictures:
    """A folder of `Dataset.save_to_disk`; of a DatasetDict its split `train`, or the only one."""
    pictures = Pictures(source=str(folder), names=[], captions=[], images=[])
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            if "train" not in splits and len(splits) != 1:
                raise SanakitError("SK0401", f"{folder} has splits {', '.join(splits)}: name one, {folder}/SPLIT")
            folder = folder / ("train" if "train" in splits else splits[0])
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        for name in [str(entry["filename"]) for entry in state["_data_files"]]:
            if Path(name).name != name:
                raise SanakitError("SK0401", f"{folder / 'state.json'} names {name}, outside its folder")
            with pa.memory_map(str(folder / name)) as source, pa.ipc.open_stream(source) as stream:
                columns = _columns(stream.schema.names, str(folder / name))
                _add(pictures, name, (r for b in stream for r in b.select(columns).to_pylist()))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise SanakitError("SK0401", f"{folder} cannot be read: {type(error).__name__}: {error}") from error
    return pictures


def read_hub_dataset(reference: str) -> Pictures:
    """`owner/name[:split]`, downloaded and cached by `datasets`. Raises SK0901 without the package, SK0902 for the hub."""
    try:
        import datasets
    except ImportError as error:
        raise SanakitError(
            "SK0901", f"hf:{reference} needs the package datasets", fix="pip install 'sanakit[datasets]'."
        ) from error
    name, _, split = reference.partition(":")
    try:
        found = datasets.load_dataset(name, split=split or "train")
        columns = _columns(found.column_names, f"hf:{name}")
        found = found.select_columns(columns).cast_column("image", datasets.Image(decode=False))
    except (OSError, ValueError) as error:
        raise SanakitError("SK0902", f"hf:{reference}: {str(error).splitlines()[0]}") from error
    pictures = Pictures(source=f"hf:{reference}", names=[], captions=[], images=[])
    _add(pictures, name, iter(found))
    return pictures


def _columns(names: list[str], source: str) -> list[str]:
    caption = next((c for c in CAPTIONS if c in names), None)
    if "image" not in names or caption is None:
        raise SanakitError(
            "SK0401", f"{source} has columns {', '.join(names)}; expected image and one of {', '.join(CAPTIONS)}"
        )
    return ["image", caption, *(["scores"] if "scores" in names else []), *(["name"] if "name" in names else [])]


def _add(pictures: Pictures, label: str, rows: Iterable[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        name = str(row.get("name") or f"{label}/{number}")
        image = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
        caption = next(row[c] for c in CAPTIONS if c in row)
        captions = [str(c) for c in caption] if isinstance(caption, list) else [str(caption or "")]
        if not isinstance(image, bytes):
            pictures.ledger.append({"name": name, "reason": "the row holds no bytes of a picture"})
            continue
        pictures.add(name, captions, image, row.get("scores"))
