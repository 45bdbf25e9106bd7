"""What the engine costs, as ratios of interleaved pairs on the embedded world (absolute times say little on a shared
machine).

    python experiments/benchmarks/bench_train.py --pairs 12 [--json FILE]

loop: `fit` against a bare loop (forward, loss, backward, clip, AdamW) over batches that already lie in memory.
core share: time of a step that is the core's own forward and backward, the clip and the optimiser.
cache: waiting for the next batch, resident and memory-mapped, as a share of a step. encode: images a second of
`sanakit encode` (decoding, hashing and writing included) over the bare VAE forward at the same batch size.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from sanakit.core.dit import new_core, parameters_by_group
from sanakit.data import load_images, store
from sanakit.data.cache import BATCH_SIZE, latent_job, read_ahead, to_images
from sanakit.data.dataset import LatentDataset, build_dataset
from sanakit.flow import interpolate, velocity_loss
from sanakit.loading import load_base, load_vae
from sanakit.training.loop import TrainOptions, draw_batch, fit, new_state

STEPS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--encode-vae", default="dc-f16c32")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    system = load_base("tiny-sana").system()
    dataset = load_images("openclipart").split(False)
    resident = build_dataset(system.vae, system.text_encoder, dataset, system.image_size, mirror=True)
    options = TrainOptions(max_steps=10**6, batch_size=args.batch_size, warmup=1)
    step_seconds, result = loop_ratio(system, resident, options, args.pairs)
    print(json.dumps(result), flush=True)
    result |= waits(system, resident, options, step_seconds, args.pairs)
    print(json.dumps(result), flush=True)
    result |= encode_ratio(args.encode_vae, dataset, system.image_size, args.pairs)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def quartiles(values: list[float]) -> list[float]:
    """Median with the first and third quartile."""
    low, middle, high = statistics.quantiles(values, n=4)
    return [round(middle, 4), round(low, 4), round(high, 4)]


def loop_ratio(system, data: LatentDataset, options: TrainOptions, pairs: int):
    """The same core, optimiser settings and batches; which of the two runs first alternates."""
    config = {k: v for k, v in system.core.config.items() if not k.startswith("_")}
    system.core = new_core(config, seed=0)

    def groups(core):
        return [{"params": p, "scale": 1.0} for p in parameters_by_group(core).values()]

    state = new_state(system.core, groups(system.core), options)
    bare_core = new_core(config, seed=0)
    trained = list(bare_core.parameters())
    optimizer = torch.optim.AdamW(groups(bare_core), lr=1e-3, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    batches = [draw_batch(system, data, options, step) for step in range(STEPS)]

    def bare() -> None:
        for batch in batches:
            predicted = bare_core(
                hidden_states=interpolate(batch.latents, batch.noise, batch.sigmas),
                encoder_hidden_states=batch.prompt.embeds,
                encoder_attention_mask=batch.prompt.mask,
                timestep=batch.sigmas * 1000,
                return_dict=False,
            )[0]
            velocity_loss(predicted, batch.latents, batch.noise).mean().backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def ours() -> None:
        fit(system, data, options, state, until=state.step + STEPS)

    bare(), ours()
    (first, second), (cpu_first, cpu_second) = interleaved(bare, ours, pairs)
    ratios = [b / a for a, b in zip(first, second, strict=True)]
    return statistics.median(second) / STEPS, {
        "step seconds": round(statistics.median(second) / STEPS, 4),
        "loop over bare loop": quartiles(ratios),
        "loop over bare loop, processor time": quartiles([b / a for a, b in zip(cpu_first, cpu_second, strict=True)]),
        "core share of a step": quartiles([min(1.0, 1 / r) for r in ratios]),
    }


def waits(
    system, data: LatentDataset, options: TrainOptions, step_seconds: float, pairs: int
) -> dict[str, list[float]]:
    """Drawing a batch, and what is left of it as a wait when the step before it takes as long as it does."""
    with tempfile.TemporaryDirectory() as folder:
        rows = torch.arange(len(data))
        tensor = data.latents
        entry = store.write(
            Path(folder),
            {"kind": "latents"},
            rows,
            lambda part: {"raw_latents": tensor[part.start : part.stop]},
            row_bytes=tensor[0].numel() * 4,
        )
        mapped = LatentDataset(
            names=data.names,
            latents=store.Rows(entry.read()["raw_latents"], rows),
            captions=data.captions,
            first=data.first,
            count=data.count,
        )
        out = {}

        def draw(source):
            return [draw_batch(system, source, options, step) for step in range(STEPS)]

        times, _ = interleaved(lambda: draw(data), lambda: draw(mapped), pairs)
        for label, values in zip(("resident", "memory-mapped"), times, strict=True):
            out[f"draw a batch, {label}, share of a step"] = quartiles([t / STEPS / step_seconds for t in values])
        left = []
        for _ in range(pairs):
            source = read_ahead(range(STEPS), lambda step: draw_batch(system, mapped, options, step))
            next(source)
            for _ in range(STEPS - 1):
                time.sleep(step_seconds)  # another thread is free to draw
                start = time.perf_counter()
                next(source)
                left.append((time.perf_counter() - start) / step_seconds)
        return out | {"wait for a memory-mapped batch, share of a step": quartiles(left)}


def encode_ratio(name: str, dataset, size: int, pairs: int) -> dict[str, list[float]]:
    vae, some = load_vae(name), dataset.subset(range(min(16 * BATCH_SIZE, len(dataset))))
    images = to_images(some.pixels(size)).split(BATCH_SIZE)

    def bare() -> None:
        with torch.no_grad():
            for batch in images:
                vae.encode_raw(batch)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            latent_job(vae, some, size).run(Path(folder))

    bare()
    wall, cpu = interleaved(bare, ours, max(4, pairs // 3))

    def share(times):
        return quartiles([a / b for a, b in zip(*times, strict=True)])

    return {
        f"encode throughput over bare {name}": share(wall),
        f"encode throughput over bare {name}, processor time": share(cpu),
    }


Times = tuple[list[float], list[float]]


def interleaved(first, second, pairs: int) -> tuple[Times, Times]:
    """Seconds of both by the wall, and of the processor in all threads: the second is less disturbed by neighbours, and
    counts what another thread does as if it were waited for."""
    clocks = (time.perf_counter, time.process_time)
    times: tuple[Times, Times] = ([], []), ([], [])
    for pair in range(pairs):
        for index in (0, 1) if pair % 2 == 0 else (1, 0):
            start = [clock() for clock in clocks]
            (first, second)[index]()
            for kind, clock in enumerate(clocks):
                times[kind][index].append(clock() - start[kind])
    return times


if __name__ == "__main__":
    main()
