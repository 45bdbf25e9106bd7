"""A data set by its name, a folder, files or an address: read, screened, and refused where too much of it is set
aside."""

from dataclasses import replace
from pathlib import Path

from sanakit.data.captions import MODES
from sanakit.data.images import FITS
from sanakit.data.index import Progress, build_index, silent
from sanakit.data.part import Plan
from sanakit.data.readers import folder, imagefolder, manifest, shards, tables
from sanakit.data.readers.sources import matches, shard_suffix, shards_below
from sanakit.data.screen import screen
from sanakit.data.table import DATASETS, ImageDataset
from sanakit.errors import SanakitError, did_you_mean
from sanakit.files import require_name, without_secrets


def load_images(
    source: str,
    *,
    max_set_aside: float = 0.05,
    fit: str | None = None,
    captions: str = "lines",
    ledger: Path | None = None,
    progress: Progress = silent,
) -> ImageDataset:
    """A registered data set; a folder of images with .txt or .caption files, with metadata.csv or .jsonl, or of
    shards; a .csv/.tsv/.jsonl manifest; WebDataset .tar or .tar.gz shards and .parquet files, by ranges, globs and
    addresses too; a folder of `datasets.save_to_disk`; or `hf:owner/name[:split]`.

    fit: `crop` or `pad`; None takes the data set's own, for files `crop`. captions: of caption files, `lines` (one a
    line) or `whole`. ledger: where a refused data set's ledger is written, by default in the cache. The images stay
    where they are: an index of them is kept in the cache (data/index.py). Raises SK0104 for an option that does not
    exist or has no effect, SK0401 and SK0402 for data that is refused.
    """
    for key, value, known in (("fit", fit or FITS[0], FITS), ("captions", captions, MODES)):
        if value not in known:
            raise SanakitError(
                "SK0104", f"data.{key} is {value!r}{did_you_mean(value, [*known])}; {' or '.join(known)}"
            )
    plan = _plan(require_name(source, "data.source"), captions)
    trusted = plan is None and source in DATASETS.entries() and DATASETS.entries()[source].embedded
    if plan is None and source not in DATASETS.entries() and any(sign in source for sign in "/\\.~"):
        raise SanakitError(
            "SK0101",
            f"{source!r} is no file or folder (searched for in {Path.cwd()}), and no data set has this name",
            cause="The path is misspelt, or relative to another folder.",
            fix="Give the path as it is from here, or a data set of `sanakit ls`.",
        )
    images = DATASETS.get(source)() if plan is None else build_index(plan, progress=progress)
    images = images if trusted else screen(images, max_set_aside=max_set_aside, ledger=ledger)
    return replace(images, fit=fit) if fit else images


def _plan(source: str, captions: str) -> Plan | None:
    """The parts of files, a folder or an address; None for a name."""
    path = Path(source).expanduser()
    is_folder = path.is_dir() and not source.startswith("hf:")
    files = [] if is_folder or source.startswith("hf:") else matches(source)
    suffix = shard_suffix(files[0] if files else without_secrets(source)) or path.suffix.lower()
    if is_folder and not tables.is_saved_dataset(path) and imagefolder.find_metadata(path) is None:
        suffix, files = shards_below(path)
    has_caption_files = suffix in shards.SUFFIXES_READ or (
        is_folder and not suffix and not tables.is_saved_dataset(path)
    )
    if captions != MODES[0] and not has_caption_files:
        raise SanakitError("SK0104", f"data.captions {captions}: {source} has no caption files", fix="Leave it out.")
    if mixed := next((file for file in files if shard_suffix(file) != suffix), None):
        raise SanakitError("SK0401", f"{source} stands for {suffix} files and for {mixed}: name files of one kind")
    if source.startswith("hf:"):
        return tables.plan_hub_dataset(source.removeprefix("hf:"))
    if suffix == ".parquet":
        return tables.plan_parquet(source, files or None)
    if suffix in shards.SUFFIXES_READ:
        return shards.plan_shards(source, captions, files or None)
    if is_folder:
        return _plan_folder(path, captions)
    if suffix in (".csv", ".tsv", ".jsonl"):
        return manifest.plan_manifest(path)
    if path.is_file():
        known = ".csv, .tsv, .jsonl, .tar, .tar.gz, .parquet"
        raise SanakitError("SK0401", f"{source} is a {suffix or 'file without a suffix'}; read are a folder, {known}")
    return None


def _plan_folder(path: Path, captions: str) -> Plan:
    """A folder of `save_to_disk`, an imagefolder with its metadata, or images with caption files."""
    if tables.is_saved_dataset(path):
        return tables.plan_saved_dataset(path)
    metadata = imagefolder.find_metadata(path)
    if metadata is not None and captions == MODES[0] and not folder.has_caption_files(path):
        return imagefolder.plan_imagefolder(path, metadata)
    return folder.plan_folder(path, captions)
