"""The index of a data set: built once by several processes, kept in the cache as memory-mapped Arrow files, and
extended when files are added.

A part is a shard, a table, or some files of a folder. Its file is named by a hash of what it was read from (paths,
sizes and times), so that a part of an unchanged shard is found again and only new ones are read.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sanakit import distributed
from sanakit.data.indexed import SCHEMA, Indexed
from sanakit.data.part import Part, PartPlan, Plan, told_of
from sanakit.data.places import SECRETS
from sanakit.data.readers import folder, manifest, shards, tables
from sanakit.data.survey import slug_of
from sanakit.data.table import ImageDataset
from sanakit.errors import SanakitError
from sanakit.files import cache_dir
from sanakit.hashing import hash_record

READERS: dict[str, Callable[[Part, Any], None]] = {
    "folder": folder.fill_part,
    "manifest": manifest.fill_part,
    "shard": shards.fill_part,
    "parquet": tables.fill_parquet,
    "arrow": tables.fill_arrow,
}
ALONE_BYTES = 256 << 20  # up to this much is read by this process: others take seconds to start
RACY_NS = 100_000_000  # a file that changed within this time of being read may change again unseen
STALE_SECONDS = 86_400.0  # parts of files that are gone stay so long, for processes that read them
Progress = Callable[[str, int, int], None]


def silent(label: str, done: int, total: int) -> None:
    """No progress shown."""


def build_index(
    plan: Plan, *, processes: int | None = None, cache: Path | None = None, progress: Progress = silent
) -> ImageDataset:
    """Every image of a plan, without its bytes. processes: None is one a core, where there is much to read. Raises
    SK0401 for a shard that cannot be read, SK0903 where the cache cannot be written."""
    home = (cache or cache_dir()) / "index" / slug_of(plan.source)
    try:
        home.mkdir(parents=True, exist_ok=True)
        missing = [part for part in plan.parts if not _is_current(home, part)]
        read_parts(missing[distributed.rank() :: distributed.world_size()], home, processes, progress)
        distributed.barrier()
        read_parts([part for part in missing if not part_file(home, part).is_file()], home, processes, progress)
        _drop_stale(home, plan)
        files = [part_file(home, part) for part in plan.parts]
        opened = [_open_part(file) for file in files]
        key = hash_record([[file.name, file.stat().st_mtime_ns] for file in files])
    except OSError as error:
        raise SanakitError("SK0903", f"cannot write {home}: {error}") from error
    return _joined(plan, opened, home, key)


def part_file(home: Path, part: PartPlan) -> Path:
    return home / f"{part.key}.arrow"


def _is_current(home: Path, part: PartPlan) -> bool:
    """Whether the part was read before, and not in the same moment as its files were written."""
    try:
        if part.reader == "shard":
            shards.unpacked(part.payload["source"])  # the copy of a compressed one, where it was removed
        return part_file(home, part).stat().st_mtime_ns - part.newest > RACY_NS
    except OSError:
        return False


def read_parts(parts: Sequence[PartPlan], home: Path, processes: int | None, progress: Progress) -> None:
    """Read parts into their files: by this process where there is little, else by several."""
    if processes is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        own_share = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        processes = 1 if sum(part.nbytes for part in parts) <= ALONE_BYTES else own_share
    # other processes have another memory, and are handed no credentials
    shared = all(not part.stamp[0][0].startswith("memory://") and part.stamp[0][0] not in SECRETS for part in parts)
    processes = min(processes, len(parts))
    if processes <= 1 or not shared:
        for number, part in enumerate(parts, 1):
            read_part(part, home)
            progress("indexing", number, len(parts))
        return
    _read_by_workers(parts, home, processes, progress)


def read_part(part: PartPlan, home: Path) -> None:
    """Read one part and put its table into place, whole or not at all."""
    rows = Part()
    READERS[part.reader](rows, part.payload)
    table = rows.table()
    temporary = home / f".{part.key}.{uuid.uuid4().hex}"
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        temporary.replace(part_file(home, part))
    finally:
        temporary.unlink(missing_ok=True)


def _read_by_workers(parts: Sequence[PartPlan], home: Path, processes: int, progress: Progress) -> None:
    """Workers are plain commands (data/index_worker.py): they import no torch and run nothing of the caller's
    script."""
    package_parent = str(Path(__file__).parents[2])
    paths = os.pathsep.join([package_parent, *([os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ordered = sorted(parts, key=lambda part: -part.nbytes)
    done, failures, lock = 0, [], threading.Lock()

    def follow(worker: subprocess.Popen[str]) -> None:
        nonlocal done
        assert worker.stdout is not None
        for line in worker.stdout:
            answer = json.loads(line)
            with lock:
                done += 1
                progress("indexing", done, len(parts))
            if "code" in answer:
                failures.append(answer)
        if worker.wait():
            with lock:
                told = f"a process that reads images into {home} ended with {worker.returncode}"
                failures.append({"code": "SK0903", "found": told})

    with tempfile.TemporaryDirectory() as scratch:
        workers = []
        for number in range(processes):
            task = Path(scratch) / f"{number}.json"
            task.write_text(json.dumps([asdict(part) for part in ordered[number::processes]]), encoding="utf-8")
            command = [sys.executable, "-m", "sanakit.data.index_worker", str(task), str(home)]
            workers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        threads = [threading.Thread(target=follow, args=(worker,), daemon=True) for worker in workers]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    if failures:
        first = failures[0]
        raise SanakitError(first["code"], first["found"], cause=first.get("cause"), fix=first.get("fix"))


def _open_part(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _drop_stale(home: Path, plan: Plan) -> None:
    """Remove parts of files that are no longer there, a day after they were last written."""
    if not distributed.is_main():
        return
    kept = {part_file(home, part).name for part in plan.parts}
    for path in home.glob("*.arrow"):
        if path.name not in kept and time.time() - path.stat().st_mtime > STALE_SECONDS:
            path.unlink(missing_ok=True)


def _joined(plan: Plan, parts: list[pa.Table], home: Path, key: str) -> ImageDataset:
    """The parts as one data set. Set aside are rows without scores or captions of the base where the first ones have
    them (or the other way round), and every further row of a name."""
    ledger, survey = list(plan.ledger), plan.survey
    first: dict[str, bool] = {}  # what the first rows have
    keep, start = [], 0
    for table in parts:
        told, seen = told_of(table)
        ledger += told
        survey.ignored.update(seen.ignored)
        survey.changed.update(seen.changed)
        if len(table):
            has = {column: bool(table[column][0].is_valid) for column in ("scores", "captions_base")}
            first = first or has
            differs = next((column for column in has if has[column] != first[column]), "")
            if not differs:
                keep.append(np.arange(start, start + len(table), dtype=np.int64))
            else:
                reason = f"has {differs}" if has[differs] else f"has no {differs}, others have"
                ledger += [{"name": name, "reason": reason} for name in table["name"].to_pylist()]
        start += len(table)
    whole = pa.concat_tables([table.replace_schema_metadata() for table in parts] or [SCHEMA.empty_table()])
    indexed = Indexed(whole, np.concatenate(keep) if keep else np.zeros(0, np.int64), home, key)
    indexed, again = _without_doubles(indexed)
    has_scores, has_base = first.get("scores", False), first.get("captions_base", False)
    rest: dict[str, Any] = {"source": plan.source, "ledger": ledger + again, "survey": survey}
    return ImageDataset.of_index(indexed, scored=has_scores, translated=has_base, **rest)


def _without_doubles(indexed: Indexed) -> tuple[Indexed, list[dict[str, str]]]:
    """Rows whose name is the first of its kind, and the ledger of the others. Names are compared by the first 8 bytes
    of their hash, and by themselves where those are equal."""
    order = indexed.numbers("order")
    ascending = np.sort(order)  # a third of the time of what follows
    if not (ascending[1:] == ascending[:-1]).any():
        return indexed, []
    by_order = np.argsort(order, kind="stable")
    same = np.flatnonzero(order[by_order][1:] == order[by_order][:-1]) + 1
    doubles: set[int] = set()
    for place in same.tolist():
        row, before = int(by_order[place]), int(by_order[place - 1])
        if indexed.value("name", row) == indexed.value("name", before):
            doubles.add(row)
    if not doubles:
        return indexed, []
    reason = "second image of this name: give one image several captions by a list in JSONL or lines in a .txt"
    rows = sorted(doubles)
    ledger = [{"name": name, "reason": reason} for name in indexed.values("name", rows)]
    return indexed.take(np.delete(np.arange(len(indexed)), rows)), ledger
