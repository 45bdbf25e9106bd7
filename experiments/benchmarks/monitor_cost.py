"""What the drift monitor adds to a training loop: its share of a step, and how often it waits for the device.

PYTHONPATH=tests:. python experiments/benchmarks/monitor_cost.py [--steps 1000] [--batch-size 16] [--device cuda]

Latents and embeddings of a training batch of tiny-sana are watched by one `Watch` over a whole run with 8 evaluations,
evaluations included. On a CPU times are of the process, on a device of the clock between two synchronisations. The goal
is at most 1% of a step and at most 1 wait between evaluations; waits are counted on the fake accelerator where it can
be built.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

import sanakit as sk
from sanakit.assembly import LatentDiffusion
from sanakit.integrations.watch import Watch

SHARE, WAITS = 0.01, 1


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.accelerator.synchronize()
    start = time.perf_counter()
    work()
    torch.accelerator.synchronize()
    return time.perf_counter() - start


def batch_of(system: LatentDiffusion, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, C, h, w), embeddings (B, L, D) and mask (B, L), seeded."""
    latents = torch.randn(size, *system.latent_shape, generator=torch.Generator().manual_seed(0))
    prompts = system.text_encoder.encode([f"drawing number {number}" for number in range(size)])
    return latents.to(device), prompts.embeds.to(device), prompts.mask.to(device)


def train_steps(system: LatentDiffusion, batch: tuple[Tensor, Tensor, Tensor], count: int) -> None:
    latents, embeds, mask = batch
    optimizer = torch.optim.AdamW(system.core.parameters(), lr=1e-5)
    for _ in range(count):
        noise, sigmas = torch.randn_like(latents), torch.rand(len(latents), device=latents.device)
        noisy = torch.lerp(latents, noise, sigmas[:, None, None, None])
        velocity = system.core(noisy, embeds, sigmas * 1000, encoder_attention_mask=mask, return_dict=False)[0]
        (velocity - (noise - latents)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def watched_steps(batch: tuple[Tensor, Tensor, Tensor], count: int) -> Watch:
    watch = Watch(steps=count, report=lambda readings, step: None)
    latents, embeds, mask = batch
    for _ in range(count):
        watch(latents=latents, embeddings=(embeds, mask))
    return watch


def waits_between_evaluations(batch: tuple[Tensor, Tensor, Tensor], count: int = 64) -> str:
    """The most waits of the steps between two evaluations; why it could not be counted."""
    try:
        import fake_accelerator
    except ImportError:
        return "not counted: PYTHONPATH lacks tests"
    if reason := fake_accelerator.why_not():
        return f"not counted: {reason}"
    fake_accelerator.install()
    with fake_accelerator.present():
        moved = tuple(part.cpu().to(fake_accelerator.NAME) for part in batch)
        watch = Watch(steps=count, report=lambda readings, step: None)
        between = [0]
        for step in range(1, count + 1):
            with fake_accelerator.Trace("/sanakit/") as trace:
                watch(latents=moved[0], embeddings=(moved[1], moved[2]))
            if step % watch.every:
                between[-1] += trace.syncs
            else:
                between.append(0)
    return str(max(between))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of the watched run")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    system = sk.load_base("tiny-sana")
    system.core.to(device).train().requires_grad_(True)
    batch = batch_of(system, given.batch_size, device)
    train_steps(system, batch, 2)
    step = seconds(lambda: train_steps(system, batch, 8), device) / 8
    watched_steps(batch, 32)
    monitor = seconds(lambda: watched_steps(batch, given.steps), device) / given.steps
    waits = waits_between_evaluations(batch)
    print(f"a training step of tiny-sana, batch {given.batch_size}, {device}: {1e3 * step:.2f} ms")
    print(f"the monitor, {given.steps} steps with 8 evaluations:  {1e3 * monitor:.3f} ms a step")
    print(f"share of a step: {monitor / step:.2%} (goal: at most {SHARE:.0%})")
    print(f"waits between two evaluations: {waits} (goal: at most {WAITS})")
    return int(monitor / step > SHARE or (waits.isdecimal() and int(waits) > WAITS))


if __name__ == "__main__":
    raise SystemExit(main())
