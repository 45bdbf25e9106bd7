"""The rows of experiments/benchmarks/scale.py: each measures and gives lines of the table."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scale_world import SIDE, apart, command, make_shards

ROOT = Path(__file__).resolve().parents[2]
RANKS = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
CORE = {"num_layers": 4, "num_attention_heads": 12, "attention_head_dim": 32, "cross_attention_dim": 384}
HEADS = {"num_cross_attention_heads": 12}
CACHED_SIDE = 256  # pixels: the latents of the PCA autoencoder are then as large as those of DC-AE f32 at 512


@dataclass(frozen=True, kw_only=True)
class Asked:
    """work: folder of the images and caches. sizes: numbers of images, ascending. added: images of the cache that
    grows. virtual: of the data set that statistics read. kills: of `encode`, of a race and of stage full."""

    work: Path
    sizes: tuple[int, ...]
    added: int
    virtual: int
    kills: int
    indexed: int


def statistics(asked: Asked) -> list[dict[str, Any]]:
    extra = apart("statistics", asked.virtual, str(asked.work / "drift"))
    told = "; ".join(f"{name} {value:,.0f}" for name, value in extra.items())
    of = f"{asked.virtual:,} images of 512 px (DC-AE f32 latents, Gemma-2 captions) made where they are read"
    return [line("extra memory of a statistic, MiB", max(extra.values()), "<= 1024", f"{of}: {told}")]


def added(asked: Asked) -> list[dict[str, Any]]:
    """A cache of `added` images, then of one more; then the finished cache, opened."""
    count, out = asked.added, asked.work / f"cache-{asked.added}"
    pattern = make_shards(asked.work / f"{count}", count)
    whole = apart("encode", pattern, str(out), CACHED_SIDE)
    more, extra = asked.work / f"{count}-and-one", make_shards(asked.work / "one", 1, first=count)
    shutil.rmtree(more, ignore_errors=True)
    shutil.copytree(asked.work / f"{count}", more)
    last = len(list((asked.work / f"{count}").glob("*.tar")))
    shutil.copy(extra.replace("{00000..00000}", "00000"), more / f"{last:05d}.tar")
    grown_out = asked.work / f"cache-{count}-grown"
    shutil.copytree(out, grown_out, dirs_exist_ok=True)
    grown = apart("encode", f"{more}/{{00000..{last:05d}}}.tar", str(grown_out), CACHED_SIDE)
    shutil.rmtree(grown_out)
    told = f"{whole['encoded']:,} rows in {whole['seconds']:.0f} s; " if whole["encoded"] else "the others were there; "
    told += f"{grown['encoded']:,} of {grown['rows']:,} rows in {grown['seconds']:.1f} s, the spot check with it"
    return [line(f"encode, one image added to {count:,}", grown["encoded"], "<= 1", told)]


def opening(asked: Asked) -> list[dict[str, Any]]:
    """Needs the cache of row `added`, and fills it where it is not there."""
    count, out = asked.added, asked.work / f"cache-{asked.added}"
    pattern = make_shards(asked.work / f"{count}", count)
    apart("encode", pattern, str(out), CACHED_SIDE)
    seconds = apart("opening", pattern, str(out), CACHED_SIDE, 11)
    told = f"{seconds['mib']:,.0f} MiB: {seconds['opened']:.3f} CPU seconds from the data set's name to the "
    told += (
        f"last value read ({seconds['found']:.3f} s of it until the first), {seconds['bare']:.3f} s bare; medians of 11"
    )
    what = f"a finished cache of {count:,} images over reading it bare"
    return [line(what, seconds["bare"] / seconds["opened"], ">= 0.5", told)]


def batches(asked: Asked) -> list[dict[str, Any]]:
    """What steps 1 to 8 are given: by one rank with 0 and 4 workers, by two ranks until step 4 and one afterwards."""
    import torch

    pattern, out = make_shards(asked.work / f"{asked.sizes[0]}", asked.sizes[0]), asked.work / "batches"
    out.mkdir(parents=True, exist_ok=True)
    runs = {
        "alone": ("alone", 0, 8, 0, ()),
        "4 workers": ("four", 0, 8, 4, ()),
        "2 ranks": ("two", 0, 4, 1, RANKS),
        "goes on": ("rest", 4, 8, 1, ()),
    }
    seen: dict[str, dict[int, dict[str, Any]]] = {}
    for title, (name, first, until, workers, launcher) in runs.items():
        ranks = apart("batches", pattern, str(out / name), first, until, workers, launcher=launcher)["ranks"]
        parts = [torch.load(out / f"{name}-{rank}.pt") for rank in range(ranks)]
        seen[title] = {s: {k: torch.cat([part[s][k] for part in parts]) for k in parts[0][s]} for s in parts[0]}
        assert ranks == (2 if launcher else 1)
    alone = seen.pop("alone")
    exact = all(
        torch.equal(tensors[name], alone[step][name])
        for steps in seen.values()
        for step, tensors in steps.items()
        for name in ("indices", "noise", "sigmas", "mask")
    )
    worst = {
        title: max(float((t[n] - alone[s][n]).abs().max()) for s, t in steps.items() for n in ("latents", "embeds"))
        for title, steps in seen.items()
    }
    whole = sorted({step for title in ("2 ranks", "goes on") for step in seen[title]}) == sorted(alone)
    told = "images, noise, sigmas and tokens bit-equal" if exact else "images, noise, sigmas or tokens DIFFER"
    told += "; latents and embeddings within " + ", ".join(f"{v:.1e} ({title})" for title, v in worst.items())
    equal = exact and whole and max(worst.values()) < 1e-5
    what = "streamed global batches of 2 ranks that go on as 1, and of 0 and 4 workers, equal"
    return [line(what, float(equal), ">= 1", told)]


def loop(asked: Asked) -> list[dict[str, Any]]:
    pattern = make_shards(asked.work / f"{asked.sizes[0]}", asked.sizes[0])
    told = apart("loop", pattern, CORE | HEADS, 96, 3, 4)
    live, memory = (sorted(told[name])[1] for name in ("live", "memory"))
    text = (
        f"core of {told['parameters'] / 1e6:.0f} M parameters, 96 px, batch 32: {live:.1f} s fed live, {memory:.1f} s"
    )
    text += f" from memory for 4 steps, medians of 3 in turns; a batch takes {told['draw']:.2f} s of CPU to draw"
    return [line("throughput fed live from shards over from memory", memory / live, ">= 0.95", text)]


def index(asked: Asked) -> list[dict[str, Any]]:
    pattern = make_shards(asked.work / f"{asked.indexed}", asked.indexed)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(3):
        for processes in seconds:
            seconds[processes].append(apart("index", pattern, processes)["seconds"])
    ratios = sorted(one / two for one, two in zip(seconds[1], seconds[2], strict=True))
    told = f"{min(seconds[1]):.1f} s by one process, {min(seconds[2]):.1f} s by two at best; pairs " + ", ".join(
        f"{ratio:.2f}" for ratio in ratios
    )
    return [line(f"index of {asked.indexed:,} images, 2 processes over 1", ratios[1], ">= 1.8", told)]


def memory(asked: Asked) -> list[dict[str, Any]]:
    """Live training: its memory, and the time to the first step."""
    told = {}
    for size in asked.sizes:
        pattern = make_shards(asked.work / f"{size}", size)
        apart("prepare", pattern)
        told[size] = apart("train", pattern)
    few, many = told[asked.sizes[-2]], told[asked.sizes[-1]]
    peaks = "; ".join(f"{size:,}: {one['peak']:.0f} MiB" for size, one in told.items())
    starts = "; ".join(f"{size:,}: {one['first']:.2f} s ({one['read']:.2f} s until data)" for size, one in told.items())
    sizes = f"{asked.sizes[-2]:,} to {asked.sizes[-1]:,} images"
    return [
        line(f"peak memory of live training, {sizes}", many["peak"] / few["peak"], "<= 1.05", peaks),
        line(f"time to the first step, index present, {sizes}", many["first"] / few["first"], "<= 1.2", starts),
    ]


def kills(asked: Asked) -> list[dict[str, Any]]:
    """SIGKILL at random moments of encoding; what is there in the end is what one that was left alone gives."""
    pattern, draw = make_shards(asked.work / f"{asked.sizes[0]}", asked.sizes[0]), random.Random(0)
    for name in ("whole", "killed"):
        shutil.rmtree(asked.work / f"cache-{name}", ignore_errors=True)
    expected = apart("encode", pattern, str(asked.work / "cache-whole"), SIDE)
    out, killed = asked.work / "cache-killed", 0
    longest = 1.5 * _seconds(lambda: apart("encode", pattern, str(asked.work / "cache-whole"), SIDE))
    for _ in range(asked.kills):
        worker = subprocess.Popen(
            command("encode", pattern, str(out), SIDE), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            worker.wait(timeout=draw.uniform(0.1, 1.0) * longest)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
            killed += 1
    left = apart("encode", pattern, str(out), SIDE)
    told = f"{killed} of {asked.kills} killed; {left['rows']:,} rows"
    what = "encoding that was killed ends with the values of one that was not"
    lines = [line(what, float(left["values"] == expected["values"]), ">= 1", told)]
    for title, test in KILLED.items():
        lines.append(line(title, float(_passes(test, asked.kills)), ">= 1", f"{asked.kills} killed; {test}"))
    return lines


KILLED = {
    "a race that was killed ends with the errors and weights of one that was not": (
        "tests/test_race.py::test_random_kills_in_the_race_leave_its_outcome_as_it_is"
    ),
    "a full run that was killed ends with the weights, curves and gates of one that was not": (
        "tests/test_faults.py::test_random_kills_of_stage_full_leave_weights_curves_and_verdict_as_they_are"
    ),
}


def _passes(test: str, kills: int) -> bool:
    """Whether a test with so many kills passes; its words where it does not."""
    asked = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", test]
    environment = {**os.environ, "SANAKIT_KILLS": str(kills)}
    ended = subprocess.run(asked, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    if ended.returncode:
        print(ended.stdout[-4000:], file=sys.stderr)
    return ended.returncode == 0


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def line(what: str, value: float, goal: str, told: str) -> dict[str, Any]:
    sign, number = goal.split()
    met = value <= float(number) if sign == "<=" else value >= float(number)
    return {"what": what, "value": round(float(value), 3), "goal": goal, "met": bool(met), "measured": told}


ROWS: dict[str, Callable[[Asked], list[dict[str, Any]]]] = {
    f.__name__: f for f in (statistics, added, opening, batches, loop, index, memory, kills)
}
