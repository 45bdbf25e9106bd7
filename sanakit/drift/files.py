"""Two files, caches, runs or snapshots compared: what `sanakit drift` does, for Python too."""

from pathlib import Path

from sanakit.drift.compare import Comparison, compare
from sanakit.drift.page import write_page
from sanakit.drift.read import read_samples
from sanakit.drift.shown import shown_rows
from sanakit.drift.snapshot import write_snapshot
from sanakit.errors import SanakitError

SNAPSHOT = "*.snapshot.safetensors"  # what stage component leaves in a run folder


def compare_files(
    reference: Path,
    current: Path,
    *,
    alpha: float = 0.05,
    seed: int = 0,
    html: Path | None = None,
    snapshot: Path | None = None,
) -> Comparison:
    """Compare the latents or embeddings of two files, folders of `encode`, run folders or snapshots.

    alpha: bound on false alarms of the whole comparison. html: where a page is written. snapshot: where `current` is
    kept as a snapshot, a file or a folder. Raises SK0701 for a side that cannot be read, SK0702 for sides that cannot
    be compared.
    """
    sources = data_of(reference), data_of(current)
    first, second = (read_samples(source, seed=seed) for source in sources)
    comparison = compare(first, second, alpha=alpha, seed=seed)
    if snapshot:
        write_snapshot(second, snapshot, seed=seed, carry=lambda kind, rows: shown_rows(sources[1], kind, rows))
    if html:
        write_page(comparison, first, second, html, sources=sources, labels=(str(reference), str(current)))
    return comparison


def data_of(source: Path) -> Path:
    """A run folder stands for the snapshot of its candidate's latents or embeddings; any other source for itself."""
    if not (source / "validation.json").is_file():
        return source
    snapshots = sorted(source.glob(SNAPSHOT))
    if not snapshots:
        raise SanakitError("SK0701", f"run {source} holds no {SNAPSHOT}; stage component writes it")
    return snapshots[0]
