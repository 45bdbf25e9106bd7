"""A data set by its name, a folder, files or an address: read, screened, and refused where too much of it is set aside."""

from dataclasses import replace
from pathlib import Path

from sanakit.data.captions import MODES
from sanakit.data.images import FITS
from sanakit.data.index import Progress, build_index, silent
from sanakit.data.part import Plan
from sanakit.data.readers import folder, manifest, shards, tables
from sanakit.data.screen import screen
from sanakit.data.table import DATASETS, ImageDataset
from sanakit.errors import SanakitError, did_you_mean
from sanakit.files import without_secrets


def load_images(
    source: str,
    *,
    max_set_aside: float = 0.05,
    fit: str | None = None,
    captions: str = "lines",
    ledger: Path | None = None,
    progress: Progress = silent,
) -> ImageDataset:
    """A registered data set, a folder of images with .txt captions, a .csv/.jsonl manifest, WebDataset .tar shards, .parquet
    files, a folder of `datasets.save_to_disk`, or `hf:owner/name[:split]`; shards and Parquet by an address too.

    fit: `crop` or `pad`; None takes the data set's own, for files `crop`. captions: of caption files, `lines` (one a line)
    or `whole`. ledger: where a refused data set's ledger is written, by default in the cache. The images stay where they
    are: an index of them is kept in the cache (data/index.py). Raises SK0104 for an option that does not exist or has no
    effect, SK0401 and SK0402 for data that is refused.
    """
    for key, value, known in (("fit", fit or FITS[0], FITS), ("captions", captions, MODES)):
        if value not in known:
            raise SanakitError(
                "SK0104", f"data.{key} is {value!r}{did_you_mean(value, [*known])}; {' or '.join(known)}"
            )
    plan = _plan(source, captions)
    trusted = plan is None and source in DATASETS.entries() and DATASETS.entries()[source].embedded
    if plan is None and source not in DATASETS.entries() and any(sign in source for sign in "/\\.~"):
        raise SanakitError(
            "SK0101",
            f"{source!r} is no file or folder (searched for in {Path.cwd()}), and no data set has this name",
            cause="The path is misspelt, or relative to another folder.",
            fix="Give the path as it is from here, or a data set of `sanakit ls`.",
        )
    found = DATASETS.get(source)() if plan is None else build_index(plan, progress=progress)
    found = found if trusted else screen(found, max_set_aside=max_set_aside, ledger=ledger)
    return replace(found, fit=fit) if fit else found


def _plan(source: str, captions: str) -> Plan | None:
    """The parts of files, a folder or an address; None for a name."""
    path = Path(source).expanduser()
    suffix = Path(without_secrets(source)).suffix.lower()
    is_folder = path.is_dir() and not source.startswith("hf:")
    if captions != MODES[0] and suffix != ".tar" and not (is_folder and not tables.is_saved_dataset(path)):
        raise SanakitError("SK0104", f"data.captions {captions}: {source} has no caption files", fix="Leave it out.")
    if source.startswith("hf:"):
        return tables.plan_hub_dataset(source.removeprefix("hf:"))
    if is_folder:
        return tables.plan_saved_dataset(path) if tables.is_saved_dataset(path) else folder.plan_folder(path, captions)
    if suffix == ".parquet":
        return tables.plan_parquet(source)
    if suffix == ".tar":
        return shards.plan_shards(source, captions)
    if suffix in (".csv", ".jsonl"):
        return manifest.plan_manifest(path)
    if path.is_file():
        raise SanakitError(
            "SK0401",
            f"{source} is a {suffix or 'file without a suffix'}; read are a folder, .csv, .jsonl, .tar, .parquet",
        )
    return None
