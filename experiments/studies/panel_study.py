"""Does anything measured on a VAE alone say how a swap to it will go? Rank correlation of the component panel, and of
plain reconstruction, with what became of the decision study's VAE swaps.

    python experiments/studies/panel_study.py      # after `decision_study.py summary`; writes results/panel_study.json

Outcome: relative error of `finetune` (closed form, every layer) after 100 steps, the last step that every swap has. The
panel is read at the study's image size on 512 training images.
"""

import json
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from sanakit.checks.diffusability import panel
from sanakit.data import load_images
from sanakit.data.cache import to_images
from sanakit.loading import load_vae

RESULTS = Path("experiments/results")
SIZE = 64
COUNT = 512
STEP = 100


def outcomes() -> dict[str, float]:
    """Mean relative error of `finetune` at STEP by candidate, over bases and seeds."""
    swaps = json.loads((RESULTS / "decision_study.json").read_text())["swaps"]
    errors_by_vae: dict[str, list[float]] = {}
    for row in swaps:
        if row["kind"] == "vae":
            steps, errors = row["curves"]["finetune"]
            errors_by_vae.setdefault(row["candidate"], []).append(
                errors[max(i for i, s in enumerate(steps) if s <= STEP)]
            )
    return {name: sum(values) / len(values) for name, values in errors_by_vae.items()}


def measure(name: str, images: torch.Tensor) -> dict[str, float]:
    vae = load_vae(name)
    with torch.no_grad():
        latents = torch.cat([vae.encode(x) for x in images.split(32)])
        decoded = torch.cat([vae.decode(z) for z in latents.split(32)]).clamp(-1, 1)
    psnr = (10 * torch.log10(4 / (decoded - images).square().mean((1, 2, 3)))).mean().item()
    rows = {row["metric"]: row["value"] for row in panel(vae, images, latents)}
    return {"PSNR": psnr, "latent values per image": float(latents[0].numel())} | rows


def main() -> None:
    torch.set_num_threads(1)
    images = to_images(load_images("embedded").split(False).subset(range(COUNT)).pixels(SIZE))
    errors = outcomes()
    vaes: dict[str, Any] = {}
    for name, error in errors.items():
        vaes[name] = {"finetune at 100 steps": round(error, 4)} | measure(name, images)
        print(name, json.dumps(vaes[name]), flush=True)
    metrics = [key for key in next(iter(vaes.values())) if key != "finetune at 100 steps"]
    ranks = {}
    for metric in metrics:
        result = spearmanr([v[metric] for v in vaes.values()], list(errors.values()))
        ranks[metric] = {"spearman": round(float(result.statistic), 3), "p_value": round(float(result.pvalue), 3)}
    study = {"outcome": f"finetune's relative error at {STEP} steps", "ranks": ranks, "vaes": vaes}
    study["command"] = "python experiments/studies/panel_study.py"
    (RESULTS / "panel_study.json").write_text(json.dumps(study, indent=1) + "\n")
    print(json.dumps(ranks, indent=1))


if __name__ == "__main__":
    main()
