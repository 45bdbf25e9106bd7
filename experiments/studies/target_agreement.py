"""Which measure says "as good as the base" across latent spaces? Each is read on cores trained from scratch by one
recipe in several VAEs' latents (experiments/studies/study_world.py): a good common currency reads 1 for all of them.

    python experiments/studies/target_agreement.py      # after `study_world.py base dc-minilm` and `reference VAE` ...

Writes experiments/results/target_agreement.json.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study_world import KEPT, SIZE, WORLD, base_name

from sanakit.assembly import LatentDiffusion, evaluating
from sanakit.checks.diffusability import kid
from sanakit.data import load_images
from sanakit.data.cache import to_images
from sanakit.data.dataset import LatentDataset, build_dataset
from sanakit.evaluation.held_out import held_out
from sanakit.flow import interpolate, predict_clean, shift_sigmas
from sanakit.loading import load_base
from sanakit.sampling import sample_images
from sanakit.swap.quality import SHARED_SIGMAS, wiener_losses

COUNT = 256
BASE_SIGMAS = (0.5, 0.7)  # where the base's clean estimates are decoded
RESULTS = Path("experiments/results/target_agreement.json")


def matched_sigmas(system: LatentDiffusion, base: LatentDiffusion) -> list[float]:
    """Sigmas of `system` that leave as much of an image as BASE_SIGMAS leave in the base's latents.

    Noise hides less of an image the more numbers describe it: alpha = sqrt(numbers / the base's numbers), then the
    shift of RAE (arXiv 2510.11690).
    """
    alpha = (np.prod(system.latent_shape) / np.prod(base.latent_shape)) ** 0.5
    return [round(shift_sigmas(torch.tensor(s, dtype=torch.float64), float(alpha)).item(), 4) for s in BASE_SIGMAS]


def one_step_error(system: LatentDiffusion, data: LatentDataset, images: torch.Tensor, sigmas: list[float]) -> float:
    """Pixel error of decoded clean estimates, mean over images (N, 3, H, W) and sigmas."""
    rows = torch.arange(len(images))
    latents, prompt = data.latents[rows, 0], data.evaluation_prompts(rows)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    errors = []
    with evaluating(system.core):
        for sigma in sigmas:
            for part in rows.split(64):
                level = torch.full((len(part),), sigma)
                noisy = interpolate(latents[part], noise[part], level)
                clean = predict_clean(noisy, system.velocity(noisy, level, prompt[part]), level)
                errors.append((system.vae.decode(clean) - images[part]).square().mean((1, 2, 3)))
    return torch.cat(errors).mean().item()


def read(system: LatentDiffusion, base: LatentDiffusion) -> dict[str, float]:
    """Every measure of one core, on the same held-out images, before the division by the base's."""
    dataset = load_images("embedded")
    train, test = (
        build_dataset(system.vae, system.text_encoder, dataset.split(h), SIZE, mirror=not h) for h in (False, True)
    )
    images = to_images(dataset.split(True).subset(range(COUNT)).pixels(SIZE))
    result = held_out(system, test, count=COUNT)
    one_step = one_step_error(system, test, images, matched_sigmas(system, base))
    losses = result.losses.mean(1).numpy()
    shares = losses / np.array(wiener_losses(train, test))
    shared = [result.sigmas.index(s) for s in SHARED_SIGMAS]
    reconstruction = (system.vae.decode(test.latents[:COUNT, 0]) - images).square().mean().item()
    null, shuffled = (held_out(system, test, count=COUNT, prompt=p).losses.mean().item() for p in ("null", "shuffled"))
    prompts = [captions[0] for captions in dataset.split(True).captions[:COUNT]]
    samples = torch.cat([sample_images(system, prompts[i : i + 64], seed=i) for i in range(0, COUNT, 64)])
    return {
        "velocity loss": float(losses.mean()),
        "loss over the linear denoiser's, all sigmas": float(shares.mean()),
        "loss over the linear denoiser's, sigma .5 to .9 (used)": float(shares[shared].mean()),
        "decoded one-step error": one_step,
        "decoded one-step error less reconstruction": one_step - reconstruction,
        "conditional gain over null": null - float(losses.mean()),
        "conditional gain over shuffled": shuffled - float(losses.mean()),
        "EffLite0-KID of samples": float(kid(samples, images) or float("nan")),
    }


def main() -> None:
    torch.set_num_threads(1)
    base = load_base(base_name("dc-minilm")).system()
    base_reading = read(base, base)
    rows: dict[str, Any] = {}
    others = [*sorted(WORLD.glob("reference-*/card.json")), KEPT / "pca-wordllama/card.json"]
    for folder in others:
        measured = read(load_base(f"path:{folder.parent}").system(), base)
        name = folder.parent.name.removeprefix("reference-")
        rows[name] = {k: round(measured[k] / base_reading[k], 3) for k in base_reading}
        print(name, json.dumps(rows[name], indent=1), flush=True)
    worst = {
        k: round(max(abs(np.log(row[k])) for row in rows.values()), 3) if all(r[k] > 0 for r in rows.values()) else None
        for k in base_reading
    }
    RESULTS.write_text(
        json.dumps(
            {
                "base": base_reading,
                "references": rows,
                "largest_log_ratio": worst,
                "command": "python experiments/studies/target_agreement.py",
            },
            indent=1,
        )
        + "\n"
    )
    print(json.dumps(worst, indent=1))


if __name__ == "__main__":
    main()
