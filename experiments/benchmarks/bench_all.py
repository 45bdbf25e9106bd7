"""Every measurement of sanakit's own overhead, one table (the monitors': drift_study.py --only overhead).

    python experiments/benchmarks/bench_all.py [--repeats 15] [--only encode,ema]

Writes experiments/results/performance.json. One thread; the clock is CPU time of this process (of the child for the
command line), so that neighbours on the machine matter less; disk waits are therefore not in it.
"""

import argparse
import io
import math
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import cache, reduce
from pathlib import Path

import bench_kernels
import torch
from bench_harness import Row, compare, save
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import nn

from sanakit.alignment import CrossMoments, align_input, align_output
from sanakit.assembly import LatentDiffusion
from sanakit.core.attention import set_kernel_attention
from sanakit.core.dit import new_core, parameters_by_group
from sanakit.core.feed_forward import set_kernel_feed_forward
from sanakit.data import load_images
from sanakit.data.cache import BATCH_SIZE, raw_latents, to_images
from sanakit.data.dataset import build_dataset
from sanakit.data.table import decode
from sanakit.flow import interpolate, velocity_loss
from sanakit.kernels.linear_attention import linear_attention
from sanakit.loading import load_text_encoder, load_vae
from sanakit.training.loop import TrainOptions, draw_batch, fit, new_state
from sanakit.training.parameters import update_ema

CONFIG = {
    "in_channels": 32, "out_channels": 32, "num_attention_heads": 5, "attention_head_dim": 32, "num_layers": 5,
    "num_cross_attention_heads": 5, "cross_attention_head_dim": 32, "cross_attention_dim": 160,
    "caption_channels": 256, "sample_size": 6, "patch_size": 1,
}  # fmt: skip
OPTIONS = TrainOptions(max_steps=10**6, batch_size=32, schedule="constant")


@cache
def embedded_images():
    return load_images("openclipart").subset(range(1024))


@cache
def world() -> tuple[LatentDiffusion, object]:
    vae, encoder = load_vae("pca-f16c32"), load_text_encoder("wordllama")
    data = build_dataset(vae, encoder, embedded_images(), 96, mirror=False)
    return LatentDiffusion(vae=vae, text_encoder=encoder, core=new_core(CONFIG, seed=0), image_size=96), data


def trainer():
    """One step of sanakit's loop a call, and the system."""
    system, data = world()
    system = LatentDiffusion(
        vae=system.vae, text_encoder=system.text_encoder, core=new_core(CONFIG, seed=0), image_size=96
    )
    groups = [{"params": p} for p in parameters_by_group(system.core).values()]
    state = new_state(system.core, groups, OPTIONS)
    return lambda: fit(system, data, OPTIONS, state, until=state.step + 1), system, data


def training_step(repeats: int) -> list[Row]:
    ours, *_ = trainer()
    _, system, data = trainer()
    core = system.core.train()
    optimizer = torch.optim.AdamW(core.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)
    batch = draw_batch(system, data, OPTIONS, 0)

    def bare():
        """A batch drawn once; no schedule, no dropout, nothing read back."""
        noisy = interpolate(batch.latents, batch.noise, batch.sigmas)
        predicted = core(
            hidden_states=noisy,
            encoder_hidden_states=batch.prompt.embeds,
            encoder_attention_mask=batch.prompt.mask,
            timestep=batch.sigmas * 1000,
            return_dict=False,
        )[0]
        velocity_loss(predicted, batch.latents, batch.noise).mean().backward()
        nn.utils.clip_grad_norm_(core.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return [
        compare("training step", ours, bare, meaning="times a bare step", against="bare PyTorch loop", share=True,
                repeats=4 * repeats)
    ]  # fmt: skip


def ema(repeats: int) -> list[Row]:
    step, system, _ = trainer()
    average = {k: v.detach().clone() for k, v in system.core.state_dict().items()}

    def one_by_one():
        with torch.no_grad():
            for name, value in system.core.state_dict().items():
                average[name].lerp_(value, 0.001)

    def ours():
        return update_ema(average, system.core, 0.999)

    return [
        compare("EMA", ours, one_by_one, meaning="times faster", against="tensor by tensor", repeats=repeats),
        compare("EMA, part of a step", ours, step, meaning="of a training step", against="training step", share=True,
                repeats=repeats),
    ]  # fmt: skip


def encode(repeats: int) -> list[Row]:
    """Images to a finished entry of the store: decoding, hashing of images, weights and shard, and writing included.

    By processor time all threads count; by the wall clock the decoding threads have the machine's other core.
    """
    vae, chosen = load_vae("dc-f16c16"), embedded_images().subset(range(1024))
    images = to_images(chosen.pixels(96)).split(BATCH_SIZE)

    def bare():
        with torch.no_grad():
            return [vae.model.encode(part) for part in images]

    def ours():
        with tempfile.TemporaryDirectory() as folder:
            return raw_latents(vae, chosen, 96, cache=Path(folder))

    options = {"against": "model.encode on decoded images, nothing written", "repeats": max(5, repeats // 2)}
    return [
        compare("encode", ours, bare, meaning="of the bare forward's throughput", **options),
        compare("encode, wall clock", ours, bare, meaning="of the bare forward's throughput, decoding on other threads",
                clock=time.perf_counter, **options),
    ]  # fmt: skip


def decoding(repeats: int) -> list[Row]:
    """A photograph's size, of smooth noise, to the sizes of a small and a usual run."""
    noise = Image.fromarray(
        torch.randint(256, (60, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    )
    buffer = io.BytesIO()
    noise.resize((4000, 3000), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)

    def whole(size: int):
        return ImageOps.pad(Image.open(io.BytesIO(buffer.getvalue())), (size, size), Image.Resampling.LANCZOS)

    return [
        compare(f"JPEG of 12 megapixels to {size} px", lambda: decode(buffer.getvalue(), size), lambda: whole(size),
                meaning="times faster", against="decoded whole, then resized", repeats=repeats)
        for size in (96, 512)
    ]  # fmt: skip


def cache_read(repeats: int) -> list[Row]:
    vae, chosen = load_vae("pca-f16c32"), embedded_images()
    with tempfile.TemporaryDirectory() as folder:

        def read():
            return raw_latents(vae, chosen, 96, cache=Path(folder))

        read()
        shards = sorted(Path(folder).glob("latents-*/*.safetensors"))
        return [
            compare(f"cache read, {len(chosen):,} images", read, lambda: [load_file(shard) for shard in shards],
                    meaning="of a bare read's throughput (the rest hashes images and weights)",
                    against="safetensors load_file", repeats=repeats)
        ]  # fmt: skip


def alignment(repeats: int) -> list[Row]:
    step, system, data = trainer()
    base = new_core(CONFIG, seed=1)
    latents = data.latents[:, 0]
    part = {"meaning": "training steps", "against": "training step", "share": True, "repeats": max(5, repeats // 3)}
    return [
        compare("alignment of the input, 1,024 images", lambda: align_input(system.core, base, latents, latents), step,
                **part),
        compare("alignment of the head, 1,024 draws", lambda: align_output(system, data, count=1024), step, **part),
    ]  # fmt: skip


def start(repeats: int) -> list[Row]:
    def child() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def call(*arguments):
        return subprocess.run([sys.executable, *arguments], capture_output=True, check=True)

    return [
        compare("CLI start (--help)", lambda: call("-c", "from sanakit.cli import main; main()", "--help"),
                lambda: call("-c", "import typer, rich"),
                meaning="times the start of its libraries", against="python -c 'import typer, rich'", share=True,
                repeats=repeats, clock=child)
    ]  # fmt: skip


def kernels_on_a_cpu(repeats: int) -> list[Row]:
    """Without a GPU the specifications run: they must not cost more than diffusers' own."""
    step, *_ = trainer()
    kernel_step, system, _ = trainer()
    set_kernel_attention(system.core)
    set_kernel_feed_forward(system.core)
    return [
        compare("step with kernels set, on a CPU", kernel_step, step, meaning="times diffusers' speed",
                against="diffusers' modules", repeats=2 * repeats)
    ]  # fmt: skip


def growth(repeats: int) -> list[Row]:
    """Exponents: cost against tokens and ranks, from the smallest to the largest size."""

    def attention(tokens: int):
        inputs = [torch.randn(1, tokens, 8, 32).requires_grad_() for _ in range(3)]
        return lambda: linear_attention(*inputs).sum().backward()

    def merged(ranks: int):
        rank_moments = CrossMoments.empty(32, 32)
        rank_moments.add(torch.randn(64, 32), torch.randn(64, 32))
        return lambda: reduce(CrossMoments.merge, [rank_moments] * ranks)

    rows = []
    for name, small, large in (
        ("growth: linear attention, 1,024 -> 16,384 tokens", attention(1024), attention(16384)),
        ("growth: moments merged, 4 -> 64 ranks", merged(4), merged(64)),
    ):
        rows.append(
            compare(name, large, small, meaning="times the cost at 16 times the size", against="the small size",
                    share=True, repeats=repeats)
        )  # fmt: skip
        print(f"{'':<48}exponent {math.log(rows[-1].ratio, 16):.2f}")
    return rows


PARTS = {
    "step": training_step, "ema": ema, "encode": encode, "decode": decoding, "cache": cache_read, "align": alignment,
    "start": start, "cpu": kernels_on_a_cpu, "growth": growth, "kernels": bench_kernels.run,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default=",".join(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.monotonic()
    for part in args.only.split(","):
        save(
            [
                replace(row, command=f"python experiments/benchmarks/bench_all.py --only {part}")
                for row in PARTS[part](args.repeats)
            ]
        )
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
