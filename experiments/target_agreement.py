"""Which measure says "as good as the base" across latent spaces? Each is read on cores trained from scratch by one
recipe in several VAEs' latents (experiments/study_world.py): a good common currency reads 1 for all of them.

    python experiments/target_agreement.py      # after `study_world.py base dc-minilm` and `reference VAE` ...

Writes experiments/results/target_agreement.json.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study_world import SIZE, WORLD

from sanakit.assembly import LatentDiffusion
from sanakit.data import load_pictures
from sanakit.data.cache import build_dataset, to_images
from sanakit.evaluate import held_out, matched_sigmas
from sanakit.sampling import sample_images
from sanakit.swap.diffusability import kid
from sanakit.swap.plan import load_base
from sanakit.swap.quality import SHARED_SIGMAS, wiener_losses

COUNT = 256
RESULTS = Path("experiments/results/target_agreement.json")


def read(system: LatentDiffusion, base: LatentDiffusion) -> dict[str, float]:
    """Every measure of one core, on the same held-out pictures, before the division by the base's."""
    pictures = load_pictures("embedded")
    train, test = (
        build_dataset(system.vae, system.text_encoder, pictures.split(h), SIZE, mirror=not h) for h in (False, True)
    )
    images = to_images(pictures.split(True).subset(range(COUNT)).pixels(SIZE))
    result = held_out(system, test, count=COUNT, images=images, image_sigmas=matched_sigmas(system, base))
    assert result.one_step is not None
    losses = result.losses.mean(1).numpy()
    shares = losses / np.array(wiener_losses(train, test))
    shared = [result.sigmas.index(s) for s in SHARED_SIGMAS]
    reconstruction = (system.vae.decode(test.latents[:COUNT, 0]) - images).square().mean().item()
    null, shuffled = (held_out(system, test, count=COUNT, prompt=p).losses.mean().item() for p in ("null", "shuffled"))
    prompts = [captions[0] for captions in pictures.split(True).captions[:COUNT]]
    samples = torch.cat([sample_images(system, prompts[i : i + 64], seed=i) for i in range(0, COUNT, 64)])
    return {
        "velocity loss": float(losses.mean()),
        "loss over the linear denoiser's, all sigmas": float(shares.mean()),
        "loss over the linear denoiser's, sigma .5 to .9 (used)": float(shares[shared].mean()),
        "decoded one-step error": result.one_step.mean().item(),
        "decoded one-step error less reconstruction": result.one_step.mean().item() - reconstruction,
        "conditional gain over null": null - float(losses.mean()),
        "conditional gain over shuffled": shuffled - float(losses.mean()),
        "EffLite0-KID of samples": float(kid(samples, images) or float("nan")),
    }


def main() -> None:
    torch.set_num_threads(1)
    base = load_base(f"path:{WORLD / 'base-dc-minilm'}").system()
    own = read(base, base)
    rows: dict[str, Any] = {}
    others = [*sorted(WORLD.glob("reference-*/card.json")), WORLD / "base-pca-wordllama" / "card.json"]
    for folder in others:
        found = read(load_base(f"path:{folder.parent}").system(), base)
        name = folder.parent.name.removeprefix("reference-")
        rows[name] = {k: round(found[k] / own[k], 3) for k in own}
        print(name, json.dumps(rows[name], indent=1), flush=True)
    worst = {
        k: round(max(abs(np.log(row[k])) for row in rows.values()), 3) if all(r[k] > 0 for r in rows.values()) else None
        for k in own
    }
    RESULTS.write_text(
        json.dumps(
            {
                "base": own,
                "references": rows,
                "largest_log_ratio": worst,
                "command": "python experiments/target_agreement.py",
            },
            indent=1,
        )
        + "\n"
    )
    print(json.dumps(worst, indent=1))


if __name__ == "__main__":
    main()
