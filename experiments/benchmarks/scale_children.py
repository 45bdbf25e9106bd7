"""What experiments/benchmarks/scale.py measures in processes of their own: python scale_children.py NAME ARGUMENTS
prints a line of JSON."""

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scale_world import CORE, LIVE, make_splits, make_system, peak_memory, train_state

STEPS = 8
BATCH = 32
LATENTS, TOKENS, WIDTH = (32, 16, 16), 300, 2304  # DC-AE f32c32 at 512 px, Gemma-2


def train(pattern: str) -> dict[str, float]:
    """Live training from shards whose index is there: target, monitors and steps; memory, and when the first step
    ended."""
    from sanakit.config import MonitorsSection
    from sanakit.swap.quality import wiener_losses
    from sanakit.training.loop import TrainOptions, fit
    from sanakit.training.monitors import make_monitors

    system, first = make_system(), []
    with peak_memory() as memory:
        start = time.perf_counter()
        data, held = make_splits(system, pattern, **LIVE)
        read = time.perf_counter() - start
        options = TrainOptions(max_steps=STEPS, batch_size=BATCH, warmup=0)
        state = train_state(system, options)
        fit(system, data, options, state, after_step=lambda *told: first.append(time.perf_counter() - start))
        make_monitors(MonitorsSection(), system, data, (system, data), options).close()
        wiener_losses(data, held)
    return {"peak": memory["peak"], "start": memory["start"], "first": first[0], "read": read}


def statistics(count: int, folder: str) -> dict[str, float]:
    """Extra memory, MiB, of whatever reads a data set of `count` images of 512 px for a figure. The text side reads
    the first 1,500 captions, ten times what it holds at once."""
    from scale_virtual import virtual_dataset

    from sanakit.alignment import align_caption, align_input, text
    from sanakit.alignment.text import Captions
    from sanakit.core.dit import new_core
    from sanakit.swap.quality import wiener_losses

    data, held = (virtual_dataset(n, LATENTS, TOKENS, WIDTH) for n in (count, count // 10))
    system, other = make_system(), make_system()
    for one in (system, other):  # its own encoder is another one: none of these figures asks it
        one.core = new_core(CORE | {"caption_channels": WIDTH, "sample_size": LATENTS[1]}, seed=0)
    text.CAPTIONS = 1500
    captions = Captions(candidate=data.captions, base=held.captions)

    def monitors() -> None:
        from sanakit.config import MonitorsSection
        from sanakit.text_encoders import PromptEmbeds
        from sanakit.training.loop import TrainOptions
        from sanakit.training.monitors import make_monitors

        for one in (system, other):
            one.null = PromptEmbeds(data.captions[:1].embeds.float(), data.captions[:1].mask)
        options = TrainOptions(max_steps=STEPS, batch_size=BATCH)
        make_monitors(MonitorsSection(), system, data, (other, data), options).close()

    measured: dict[str, Callable[[], object]] = {
        "target of a VAE swap": lambda: wiener_losses(data, held),
        "closed form of the input": lambda: align_input(
            system.core, other.core, data.latents, held.latents, count=4096
        ),
        "closed form of the captions": lambda: align_caption(system.core, other.core, captions),
        "references of the monitors": monitors,
        "drift file of latents": lambda: drift_file(data, Path(folder), "latents"),
        "drift file of embeddings": lambda: drift_file(data, Path(folder), "embeddings"),
    }
    extra = {}
    for name, work in measured.items():
        with peak_memory() as memory:
            work()
        extra[name] = memory["peak"] - memory["start"]
        print(name, round(extra[name]), file=sys.stderr, flush=True)
    return extra


def drift_file(data: Any, folder: Path, kind: str) -> None:
    """The file that `encode` writes beside an entry of `data`."""
    import torch
    from scale_virtual import Embeds, VirtualJob

    from sanakit.cli.data import _fill

    if kind == "latents":
        tensors, normalize = {"raw_latents": data.latents}, lambda raw: (raw - 0.1) * 2
    else:
        tensors, normalize = {name: Embeds(data.captions, name) for name in ("embeds", "mask")}, None
    small = {"labels": torch.zeros(1, 80, dtype=torch.uint8)}
    folder.mkdir(parents=True, exist_ok=True)
    row = _fill(VirtualJob(folder, kind, tensors, len(data)), folder, {"vae": "virtual"}, lambda rows: small, normalize)
    Path(row["file"]).unlink()


def index(pattern: str, processes: int) -> dict[str, float]:
    """Seconds of an index that is built anew."""
    from sanakit.data.index import build_index
    from sanakit.data.readers.shards import plan_shards

    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        count = len(build_index(plan_shards(pattern), processes=processes, cache=Path(cache)))
        return {"seconds": time.perf_counter() - start, "images": count}


def encode(pattern: str, out: str, side: int) -> dict[str, Any]:
    """Latents of a data set into a cache: how many were encoded, and a hash of all values."""
    from sanakit.data import load_images
    from sanakit.data.cache import latent_job

    images = load_images(pattern)
    start = time.perf_counter()
    entry, tensors, reused = latent_job(make_system().vae, images, side).run(Path(out))
    seconds = time.perf_counter() - start
    digest = hashlib.sha256()
    for first in range(0, len(images), 1000):
        digest.update(tensors["raw_latents"][first : first + 1000].numpy().tobytes())
    encoded = 0 if reused else entry.manifest["count"]
    return {"values": digest.hexdigest(), "encoded": encoded, "rows": len(images), "seconds": seconds}


def opening(pattern: str, out: str, side: int, times: int) -> dict[str, float]:
    """Seconds to open a finished cache and read all of it, from the data set's name on, and to read its shards bare;
    the medians of `times`."""
    import torch
    from safetensors.torch import load_file

    from sanakit.data import load_images
    from sanakit.data.cache import latent_job

    vae, seconds = make_system().vae, {"opened": [], "bare": [], "found": []}
    for _ in range(times):
        start = time.perf_counter()
        entry, tensors, _ = latent_job(vae, load_images(pattern), side).run(Path(out))
        seconds["found"].append(time.perf_counter() - start)
        total = sum(
            float(tensors["raw_latents"][i : i + 1000].sum()) for i in range(0, len(tensors["raw_latents"]), 1000)
        )
        seconds["opened"].append(time.perf_counter() - start)
        start = time.perf_counter()
        again = 0.0
        for shard in entry.manifest["shards"]:
            latents = load_file(entry.folder / shard["name"])["raw_latents"]
            again += sum(float(torch.clone(latents[i : i + 1000]).sum()) for i in range(0, len(latents), 1000))
        seconds["bare"].append(time.perf_counter() - start)
        assert abs(total - again) <= 1e-3 * abs(total)
    return {name: sorted(values)[times // 2] for name, values in seconds.items()} | {"mib": entry.nbytes / 2**20}


def batches(pattern: str, out: str, first: int, until: int, workers: int) -> dict[str, int]:
    """Train from step `first` on, live, and keep what every step of this rank was given: OUT-RANK.pt."""
    import torch

    from sanakit.distributed import rank, world_size
    from sanakit.training.loop import TrainOptions, fit

    system = make_system()
    options = TrainOptions(max_steps=until, batch_size=BATCH, warmup=0, workers=workers)
    state = train_state(system, options)
    data, _ = make_splits(system, pattern, **LIVE)
    state.step, seen = first, {}

    def keep(step: int, loss: float, batch: Any, predicted: Any) -> None:
        tensors = {"indices": batch.indices, "noise": batch.noise, "sigmas": batch.sigmas, "latents": batch.latents}
        tensors |= {"embeds": batch.prompt.embeds, "mask": batch.prompt.mask}
        seen[step] = {name: tensor.clone() for name, tensor in tensors.items()}

    fit(system, data, options, state, after_step=keep)
    torch.save(seen, f"{out}-{rank()}.pt")
    return {"ranks": world_size()}


def loop(pattern: str, core: dict[str, int], side: int, pairs: int, steps: int) -> dict[str, Any]:
    """Seconds of `steps` steps fed live from shards and from memory, in turns, and of drawing one batch live."""
    import torch

    from sanakit.training.loop import TrainOptions, draw_batch, fit

    torch.set_num_threads(1)
    system = make_system(**core)
    feeds = {"live": LIVE, "memory": {}}
    data = {name: make_splits(system, pattern, side, **options)[0] for name, options in feeds.items()}
    options = TrainOptions(max_steps=steps, batch_size=BATCH, warmup=0)
    seconds: dict[str, list[float]] = {"live": [], "memory": []}
    for _ in range(pairs):
        for name in seconds:
            state = train_state(system, options)
            start = time.perf_counter()
            fit(system, data[name], options, state)
            seconds[name].append(time.perf_counter() - start)
    start = time.process_time()
    for step in range(steps):
        draw_batch(system, data["live"], options, step)
    draw = (time.process_time() - start) / steps
    return seconds | {"draw": draw, "parameters": sum(p.numel() for p in system.core.parameters())}


FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (train, statistics, index, encode, opening, batches, loop)
}

if __name__ == "__main__":
    name, arguments = sys.argv[1:]
    print(json.dumps(FUNCTIONS[name](*json.loads(arguments))))
