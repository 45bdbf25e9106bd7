"""Swap the VAE of a base in Python, train it in a loop of your own, watched, and sample with the result.

python experiments/examples/swap_a_vae.py --out swapped [--vae dc-f16c16] [--data embedded] [--steps 200]

The steps are those of docs/library.md; `sanakit swap-vae` does the same with a race of strategies before it.
"""

import argparse
from pathlib import Path

import torch

import sanakit as sk
from sanakit.integrations.watch import Watch


def train(swapped: object, steps: int, *, batch_size: int = 16, learning_rate: float = 1e-4) -> Watch:
    """Flow matching on the training split with AdamW; returns the monitor."""
    train_set, system = swapped.context.candidate_data[0], swapped.system  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW(swapped.parameter_groups(lr=learning_rate))  # type: ignore[attr-defined]
    watch = Watch(steps=steps, latents=train_set.latents[:320, 0])
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(train_set), (batch_size,), generator=generator)
        latents, sigmas = train_set.latents[rows, 0], torch.rand(batch_size, generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = torch.lerp(latents, noise, sigmas[:, None, None, None])
        velocity = system.velocity(noisy, sigmas, train_set.evaluation_prompts(rows))
        (velocity - (noise - latents)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        watch(latents=latents)
    return watch


def main(arguments: list[str] | None = None) -> Watch:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="A folder for the swapped system; must not exist.")
    parser.add_argument("--base", default="tiny-sana")
    parser.add_argument("--vae", default="dc-f16c16")
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--prompt", default="red apple")
    given = parser.parse_args(arguments)

    base, vae, images = sk.load_base(given.base), sk.load_vae(given.vae), sk.load_images(given.data)
    print(sk.plan(base, vae=vae).to_frame())
    checked = sk.validate(vae, base=base, data=images)
    print(f"stage component: {checked.verdict}, failed gates: {[gate.gate for gate in checked.failed]}")
    swapped = sk.swap(base, vae=vae, data=images)
    print(f"started by {swapped.strategy.initialise}: {swapped.quality.value:.3f} of the base's error")
    watch = train(swapped, given.steps)
    print(f"latents of the loop: {watch.verdict}")
    print(f"after {given.steps} steps: {sk.relative_error(swapped.system, images, base=base).value:.3f}")
    swapped.save(given.out)
    swapped.pipeline(scheduler="dpm++")(given.prompt, num_inference_steps=12).images[0].save(given.out / "sample.png")
    print(f"{given.out}: --base path:{given.out}, sample.png")
    return watch


if __name__ == "__main__":
    main()
