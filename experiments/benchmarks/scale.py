"""How memory and time grow with the number of images: the table of docs/scale.md.

    python experiments/benchmarks/scale.py [--sizes 500,2000,8000] [--kills 3] [--only memory,index,...]

Images are small and made here (48 px, in tar shards of 1,000). Every line that measures memory or a start runs in a
process of its own. Writes experiments/results/scale.json. The full sizes are 2000,20000,200000 with 50 kills.
"""

import argparse
import io
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RESULT = Path(__file__).parent.parent / "results" / "scale.json"
SHARD = 1000
SIZE = 48
STEPS = 12
CORE = {
    "in_channels": 32, "out_channels": 32, "num_attention_heads": 8, "attention_head_dim": 32, "num_layers": 4,
    "num_cross_attention_heads": 8, "cross_attention_head_dim": 32, "cross_attention_dim": 256,
    "caption_channels": 256, "sample_size": 3, "patch_size": 1,
}  # fmt: skip


# --- data and systems ------------------------------------------------------------------------------------------------


def make_shards(folder: Path, count: int) -> str:
    """Tar shards of `count` images with captions; made once. Returns their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = math.ceil(count / SHARD)
    for number in range(shards):
        path = folder / f"{number:05d}.tar"
        if path.is_file():
            continue
        rng = np.random.default_rng(number)
        with tarfile.open(path.with_suffix(".tmp"), "w") as tar:
            for i in range(number * SHARD, min(count, (number + 1) * SHARD)):
                buffer = io.BytesIO()
                small = rng.integers(256, size=(6, 6, 3), dtype=np.uint8)
                Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
                for name, content in ((f"{i:08d}.jpg", buffer.getvalue()), (f"{i:08d}.txt", f"image {i}".encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        path.with_suffix(".tmp").replace(path)
    return str(folder / f"{{00000..{shards - 1:05d}}}.tar")


def make_system() -> Any:
    from sanakit.assembly import LatentDiffusion
    from sanakit.core.dit import new_core
    from sanakit.loading import load_text_encoder, load_vae

    parts = {"vae": load_vae("pca-f16c32"), "text_encoder": load_text_encoder("wordllama")}
    return LatentDiffusion(**parts, core=new_core(CORE, seed=0), image_size=SIZE)


def split_of(system: Any, pattern: str, held_out: bool, **options: Any) -> Any:
    from sanakit.data import load_images
    from sanakit.data.dataset import build_dataset

    images = load_images(pattern).split(held_out)
    return build_dataset(system.vae, system.text_encoder, images, SIZE, mirror=not held_out, **options)


LIVE = {"live_latents": True, "live_embeddings": True}


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Peak of this process's own memory (anonymous pages, MiB) above the start, sampled every 5 ms; pages of mapped
    files are the system's."""

    def own() -> float:
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return int(text.partition("RssAnon:")[2].split()[0]) / 1024

    found = {"start": own(), "peak": own()}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            found["peak"] = max(found["peak"], own())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        found["peak"] = max(found["peak"], own())


# --- in a process of its own -----------------------------------------------------------------------------------------


def child_train(pattern: str) -> dict[str, float]:
    """Live training from shards whose index is there: memory, and the time to the first step."""
    from sanakit.swap.quality import wiener_losses
    from sanakit.training.loop import TrainOptions, fit, new_state

    system = make_system()
    first: list[float] = []
    with peak_memory() as memory:
        start = time.perf_counter()
        train, held = split_of(system, pattern, False, **LIVE), split_of(system, pattern, True, **LIVE)
        options = TrainOptions(max_steps=STEPS, batch_size=32, warmup=0)
        groups = [{"params": list(system.core.parameters()), "scale": 1.0, "name": "core"}]
        state = new_state(system.core, groups, options)
        fit(system, train, options, state, after_step=lambda *a: first.append(time.perf_counter() - start))
        wiener_losses(train, held)
    return {"peak": memory["peak"], "first": first[0]}


def child_statistics(pattern: str) -> dict[str, float]:
    """Extra memory of what reads a data set for a figure, MiB."""
    from sanakit.config import MonitorsSection
    from sanakit.swap.quality import wiener_losses
    from sanakit.training.loop import TrainOptions
    from sanakit.training.monitors import make_monitors

    system = make_system()
    train, held = split_of(system, pattern, False, **LIVE), split_of(system, pattern, True, **LIVE)
    options = TrainOptions(max_steps=STEPS, batch_size=32)
    extra = {}
    with peak_memory() as memory:
        wiener_losses(train, held)
    extra["target"] = memory["peak"] - memory["start"]
    with peak_memory() as memory:
        make_monitors(MonitorsSection(), system, train, (system, train), options).close()
    extra["monitors"] = memory["peak"] - memory["start"]
    return extra


def child_index(pattern: str, processes: int) -> dict[str, float]:
    from sanakit.data.index import build_index
    from sanakit.data.readers.shards import plan_shards

    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        build_index(plan_shards(pattern), processes=processes, cache=Path(cache))
        return {"seconds": time.perf_counter() - start}


def child_encode(pattern: str, out: str) -> dict[str, Any]:
    from sanakit.data import load_images
    from sanakit.data.cache import latent_job

    system = make_system()
    entry, tensors, reused = latent_job(system.vae, load_images(pattern), SIZE).run(Path(out))
    import hashlib

    values = hashlib.sha256(tensors["raw_latents"][:].numpy().tobytes()).hexdigest()
    return {"values": values, "count": entry.manifest["count"], "reused": reused, "rows": len(tensors["raw_latents"])}


CHILDREN: dict[str, Callable[..., Any]] = {
    "train": child_train,
    "statistics": child_statistics,
    "index": child_index,
    "encode": child_encode,
}


def command(name: str, *arguments: Any) -> list[str]:
    return [sys.executable, __file__, "--child", name, json.dumps(arguments)]


def apart(name: str, *arguments: Any) -> Any:
    """The result of a child process."""
    told = subprocess.run(command(name, *arguments), capture_output=True, text=True, check=False)
    if told.returncode:
        raise RuntimeError(told.stderr)
    return json.loads(told.stdout.splitlines()[-1])


# --- the lines of the table ------------------------------------------------------------------------------------------


def measure_memory(work: Path, sizes: list[int], kills: int) -> list[dict[str, Any]]:
    found = {}
    for size in sizes:
        pattern = make_shards(work / str(size), size)
        apart("train", pattern)  # the index, and the sample that is decoded
        found[size] = apart("train", pattern)
    few, many = found[sizes[-2]], found[sizes[-1]]
    peaks = ", ".join(f"{size:,}: {own['peak']:.0f} MiB" for size, own in found.items())
    starts = ", ".join(f"{size:,}: {own['first']:.2f} s" for size, own in found.items())
    return [
        line("peak memory of live training", many["peak"] / few["peak"], "<= 1.05", peaks),
        line("time to the first step, index present", many["first"] / few["first"], "<= 1.2", starts),
    ]


def measure_index(work: Path, sizes: list[int], kills: int) -> list[dict[str, Any]]:
    pattern = make_shards(work / str(sizes[-1]), sizes[-1])
    one, two = (min(apart("index", pattern, n)["seconds"] for _ in range(3)) for n in (1, 2))
    rate = f"{sizes[-1] / one:,.0f} images a second by one process, {sizes[-1] / two:,.0f} by two; best of 3"
    return [line(f"index of {sizes[-1]:,} images, 2 processes over 1", one / two, ">= 1.8", rate)]


def measure_loop(work: Path, sizes: list[int], kills: int) -> list[dict[str, Any]]:
    import torch

    from sanakit.training.loop import TrainOptions, draw_batch, fit, new_state

    torch.set_num_threads(1)
    system, pattern = make_system(), make_shards(work / str(sizes[0]), sizes[0])
    live, memory = split_of(system, pattern, False, **LIVE), split_of(system, pattern, False)
    options = TrainOptions(max_steps=STEPS, batch_size=32, warmup=0)
    seconds: dict[str, list[float]] = {"live": [], "memory": []}
    for name, data in [("live", live), ("memory", memory)] * 3:
        groups = [{"params": list(system.core.parameters()), "scale": 1.0, "name": "core"}]
        state = new_state(system.core, groups, options)
        start = time.perf_counter()
        fit(system, data, options, state)
        seconds[name].append(time.perf_counter() - start)
    ratio = min(seconds["memory"]) / min(seconds["live"])
    told = f"{STEPS * 32 / min(seconds['live']):.0f} and {STEPS * 32 / min(seconds['memory']):.0f} images a second"
    rows = [slice(0, 16), slice(16, 32)]
    worst, same = 0.0, True
    for step in range(8):
        whole = draw_batch(system, live, options, step)
        halves = [draw_batch(system, live, options, step, part) for part in rows]
        worst = max(worst, float((torch.cat([h.latents for h in halves]) - whole.latents).abs().max()))
        same = same and torch.equal(torch.cat([h.indices for h in halves]), whole.indices)
        same = same and torch.equal(torch.cat([h.noise for h in halves]), whole.noise)
    equal = f"images, noise and captions {'equal' if same else 'DIFFER'}, latents within {worst:.1e}"
    return [
        line("throughput fed live over from memory", ratio, ">= 0.95", told),
        line("global batches, 2 ranks and 1, streamed", float(same), ">= 1", equal),
    ]


def measure_statistics(work: Path, sizes: list[int], kills: int) -> list[dict[str, Any]]:
    found = apart("statistics", make_shards(work / str(sizes[-1]), sizes[-1]))
    told = ", ".join(f"{name} {value:.0f} MiB" for name, value in found.items())
    return [line("extra memory of a statistic, MiB", max(found.values()), "<= 1024", told)]


def measure_cache(work: Path, sizes: list[int], kills: int) -> list[dict[str, Any]]:
    from sanakit.data import load_images
    from sanakit.data.cache import latent_job

    count = sizes[1]
    pattern, out = make_shards(work / "grown", count), work / "cache-grown"
    shutil.rmtree(out, ignore_errors=True)
    apart("encode", pattern, str(out))
    more = work / "more"
    make_shards(more, count)
    extra = make_shards(work / "extra", 1)
    last = len(list(more.glob("*.tar")))
    shutil.copy(extra.replace("{00000..00000}", "00000"), more / f"{last:05d}.tar")
    added = apart("encode", str(more / f"{{00000..{last:05d}}}.tar"), str(out))
    system = make_system()
    images = load_images(pattern)
    opened, bare = [], []
    for _ in range(3):
        start = time.perf_counter()
        job = latent_job(system.vae, images, SIZE)
        entry, tensors, _ = job.run(out)
        tensors["raw_latents"][:]
        opened.append(time.perf_counter() - start)
        start = time.perf_counter()
        for shard in entry.read()["raw_latents"]:
            shard.clone()
        bare.append(time.perf_counter() - start)
    told = f"{min(opened):.3f} s to open and read {count:,} images, {min(bare):.3f} s to read them bare"
    return [
        line(f"images encoded when one is added to {count:,}", added["count"], "<= 1", f"{added['rows']:,} rows"),
        line("a finished cache over reading it bare", min(bare) / min(opened), ">= 0.5", told),
    ]


def measure_kills(work: Path, sizes: list[int], kills: int) -> list[dict[str, Any]]:
    pattern, draw = make_shards(work / str(sizes[0]), sizes[0]), random.Random(0)
    expected = apart("encode", pattern, str(work / "cache-whole"))["values"]
    out = work / "cache-killed"
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    apart("encode", pattern, str(work / "cache-timed"))
    whole, killed = time.perf_counter() - start, 0
    for _ in range(kills):
        worker = subprocess.Popen(
            command("encode", pattern, str(out)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            worker.wait(timeout=draw.uniform(0.3, 1.0) * whole)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
            killed += 1
    found = apart("encode", pattern, str(out))
    told = f"{killed} of {kills} killed; {found['rows']:,} rows"
    return [
        line(
            "encoding after kills has the values of one that was left alone", found["values"] == expected, ">= 1", told
        )
    ]


def line(what: str, value: float, goal: str, told: str) -> dict[str, Any]:
    sign, number = goal.split()
    met = value <= float(number) if sign == "<=" else value >= float(number)
    return {"what": what, "value": round(float(value), 3), "goal": goal, "met": bool(met), "measured": told}


LINES: dict[str, Callable[[Path, list[int], int], list[dict[str, Any]]]] = {
    "memory": measure_memory,
    "index": measure_index,
    "loop": measure_loop,
    "statistics": measure_statistics,
    "cache": measure_cache,
    "kills": measure_kills,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="500,2000,8000")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--only", default=",".join(LINES))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sanakit-scale")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, values = arguments.child
        print(json.dumps(CHILDREN[name](*json.loads(values))))
        return
    os.environ["SANAKIT_CACHE"] = str(arguments.work / "cache")
    sizes = [int(size) for size in arguments.sizes.split(",")]
    before = json.loads(RESULT.read_text()) if RESULT.is_file() else {"rows": {}}
    for name in arguments.only.split(","):
        for row in LINES[name](arguments.work, sizes, arguments.kills):
            before["rows"][row["what"]] = row | {"sizes": sizes}
            met = "yes" if row["met"] else "NO"
            print(f"{row['what']:62} {row['value']:>10} {row['goal']:>9} {met:>4}  {row['measured']}", flush=True)
            RESULT.write_text(json.dumps(before, indent=1) + "\n")


if __name__ == "__main__":
    main()
