"""A data set by its name, a folder, files or an address: read, screened, and refused where too much of it is set
aside."""

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from sanakit.data.captions import MODES
from sanakit.data.images import FITS, open_image
from sanakit.data.readers import folder, manifest, shards, tables
from sanakit.data.survey import reason_of, write_ledger
from sanakit.data.table import DATASETS, ImageDataset
from sanakit.errors import SanakitError, did_you_mean

SCREENED = 8  # pixels of a side: a JPEG is screened at its smallest scale, all of its bytes read


def screen(dataset: ImageDataset, *, max_set_aside: float, ledger: Path | None = None) -> ImageDataset:
    """Drop what does not decode, with the reason in the ledger; SK0401 when nothing is left, SK0402 past the share.

    ledger: the file that a refused data set's ledger is written to, by default one in the cache.
    """
    keep, rows, survey = [], list(dataset.ledger), replace(dataset.survey, sizes=[])
    for i, (name, data) in enumerate(zip(dataset.names, dataset.images, strict=True)):
        try:
            opened = open_image(data, SCREENED)
            if not any(caption.strip() for caption in dataset.captions[i]):
                raise ValueError("no caption")
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises anything on a damaged file, and the others are to be read
            rows.append({"name": name, "reason": reason_of(error)})
            continue
        keep.append(i)
        survey.sizes.append((opened.width, opened.height))
        for remark in opened.remarks:
            survey.changed.add(remark, name)
    if not keep or len(rows) > max_set_aside * (len(keep) + len(rows)):
        refuse(replace(dataset, ledger=rows), len(keep), max_set_aside, ledger)
    result = dataset.subset(keep)
    result.ledger, result.survey = rows, survey
    return result


def refuse(dataset: ImageDataset, kept: int, max_set_aside: float, ledger: Path | None) -> NoReturn:
    """SK0401 where no image is left, else SK0402; the ledger is written and named, and what was not read."""
    rows = dataset.ledger
    total = kept + len(rows)
    told = f"{dataset.source}: {total} files, none an image with a caption"
    if kept:
        told = f"{len(rows)} of {total} images set aside, at most {max_set_aside:.0%} expected"
    if rows:
        told += f"; first: {rows[0]['name']}: {rows[0]['reason']}"
    if dataset.survey.ignored:
        told += f"; not read: {dataset.survey.ignored.text()}"
    if rows:
        told += f"; all reasons: {write_ledger(rows, dataset.source, ledger)}"
    raise SanakitError("SK0402" if kept else "SK0401", told)


def load_images(
    source: str,
    *,
    max_set_aside: float = 0.05,
    fit: str | None = None,
    captions: str = "lines",
    ledger: Path | None = None,
) -> ImageDataset:
    """A registered data set, a folder of images with .txt captions, a .csv/.jsonl manifest, WebDataset .tar shards,
    .parquet files, a folder of `datasets.save_to_disk`, or `hf:owner/name[:split]`; shards and Parquet by an address
    too.

    fit: `crop` or `pad`; None takes the data set's own, for files `crop`. captions: of caption files, `lines` (one a
    line) or `whole`. ledger: where a refused data set's ledger is written, by default in the cache. Raises SK0104 for
    an option that does not exist or has no effect, SK0401 and SK0402 for data that is refused.
    """
    for key, value, known in (("fit", fit or FITS[0], FITS), ("captions", captions, MODES)):
        if value not in known:
            raise SanakitError(
                "SK0104", f"data.{key} is {value!r}{did_you_mean(value, [*known])}; {' or '.join(known)}"
            )
    dataset = _read(source, captions)
    trusted = dataset is None and source in DATASETS.entries() and DATASETS.entries()[source].embedded
    if dataset is None and source not in DATASETS.entries() and any(sign in source for sign in "/\\.~"):
        raise SanakitError(
            "SK0101",
            f"{source!r} is no file or folder (searched for in {Path.cwd()}), and no data set has this name",
            cause="The path is misspelt, or relative to another folder.",
            fix="Give the path as it is from here, or a data set of `sanakit ls`.",
        )
    dataset = DATASETS.get(source)() if dataset is None else dataset
    dataset = dataset if trusted else screen(dataset, max_set_aside=max_set_aside, ledger=ledger)
    return replace(dataset, fit=fit) if fit else dataset


def _read(source: str, captions: str) -> ImageDataset | None:

    path = Path(source).expanduser()
    suffix, is_folder = path.suffix.lower(), path.is_dir() and not source.startswith("hf:")
    if captions != MODES[0] and suffix != ".tar" and not (is_folder and not tables.is_saved_dataset(path)):
        raise SanakitError("SK0104", f"data.captions {captions}: {source} has no caption files", fix="Leave it out.")
    if source.startswith("hf:"):
        return tables.read_hub_dataset(source.removeprefix("hf:"))
    if is_folder:
        return tables.read_saved_dataset(path) if tables.is_saved_dataset(path) else folder.read_folder(path, captions)
    if suffix == ".parquet":
        return tables.read_parquet_files(source)
    if suffix == ".tar":
        return shards.read_shards(source, captions)
    if suffix in (".csv", ".jsonl"):
        return manifest.read_manifest(path)
    if path.is_file():
        raise SanakitError(
            "SK0401",
            f"{source} is a {suffix or 'file without a suffix'}; read are a folder, .csv, .jsonl, .tar, .parquet",
        )
    return None
