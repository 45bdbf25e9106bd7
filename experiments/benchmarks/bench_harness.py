"""Paired timing: two functions run in turn, many times; the ratio's median with a bootstrap interval.

Ratios survive a shared machine where seconds do not. On a CPU the clock is this process's CPU time.
"""

import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

RESULTS = Path("experiments/results/performance.json")


@dataclass(frozen=True, kw_only=True)
class Row:
    """ratio: `meaning` says of what; [low, high] its 95% interval; seconds: medians of one call,
    ours and the peer's."""

    name: str
    ratio: float
    low: float
    high: float
    meaning: str
    peer: str
    seconds: float
    peer_seconds: float
    repeats: int
    machine: str
    versions: str
    date: str
    command: str


def machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {torch.get_num_threads()} of {len([x for x in lines if x.startswith('processor')]) or '?'} cores"


def versions() -> str:
    names = ("torch", "triton", "diffusers")
    stated = []
    for name in names:
        try:
            stated.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            stated.append(f"no {name}")
    return f"Python {platform.python_version()}, {', '.join(stated)}"


def compare(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    meaning: str,
    against: str,
    repeats: int = 21,
    share: bool = False,
    clock: Callable[[], float] = time.process_time,
    timer: Callable[[Callable[[], object]], float] | None = None,
) -> Row:
    """The ratio is peer / ours (above 1: faster than the peer), or with `share` ours / peer (part of it)."""

    def cpu(function: Callable[[], object]) -> float:
        start = clock()
        function()
        return clock() - start

    measure = timer or cpu
    ours(), peer()
    pairs = []
    for repeat in range(repeats):
        first, second = (ours, peer) if repeat % 2 else (peer, ours)
        times = {first: measure(first), second: measure(second)}
        pairs.append((times[ours], times[peer]))
    measured, other = np.array(pairs).T
    ratios = measured / other if share else other / measured
    draws = np.random.default_rng(0).choice(ratios, (2000, repeats))
    low, high = np.quantile(np.median(draws, 1), (0.025, 0.975))
    row = Row(
        name=name,
        ratio=float(np.median(ratios)),
        low=float(low),
        high=float(high),
        meaning=meaning,
        peer=against,
        seconds=float(np.median(measured)),
        peer_seconds=float(np.median(other)),
        repeats=repeats,
        machine=machine(),
        versions=versions(),
        date=datetime.now(UTC).date().isoformat(),
        command=f"python experiments/{Path(sys.argv[0]).name}",
    )
    print(line(row), flush=True)
    return row


def line(row: Row) -> str:
    return f"{row.name:<46}{row.ratio:>9.3g}  [{row.low:.3g}, {row.high:.3g}]  {row.meaning}; {row.peer}"


def save(rows: list[Row]) -> None:
    """Rows of the same name and machine are replaced, the others stay."""
    old = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    fresh = {(row.name, row.machine) for row in rows}
    kept = [row for row in old if (row.get("name"), row.get("machine")) not in fresh]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(kept + [asdict(row) for row in rows], indent=1) + "\n")
