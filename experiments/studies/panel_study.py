"""Does anything measured on a VAE alone say how a swap to it will go? Rank correlation of the component panel, and of
plain reconstruction, with what becomes of a swap.

    python experiments/studies/study_candidates.py             # once: candidates that no package ships
    python experiments/studies/panel_study.py                  # writes results/panel_study.json; run again to go on

Outcome: relative error of `finetune` (closed form of the swapped layers, every layer trained) after 100 steps in one
base, at the better of two learning rates, on 128 held-out images. Candidates: the VAEs of the decision study, less the
swaps into this base that only its final evaluation reads. The panel is read at the base's image size on 512 training
images.
"""

import json
from pathlib import Path
from typing import Any

import torch
from rate_study import STEPS, Cell, run_cell
from scipy.stats import spearmanr
from study_candidates import name_of
from study_plan import SWAPS, StudySwap, evaluation_third
from study_world import base_name

from sanakit.checks.diffusability import panel
from sanakit.data import load_images
from sanakit.data.cache import to_images
from sanakit.loading import load_vae

RESULTS = Path("experiments/results")
CURVES = RESULTS / "panel_curves.json"
BASE, OWN = "dc-minilm", "dc-f16c32"
SIZE = 64
COUNT = 512
RATES = (2e-3, 1e-3)
OUTCOME = f"finetune's relative error at {STEPS} steps"


def candidates() -> list[str]:
    """VAEs of the study's plan but the base's own, less those whose swap into the base is held back."""
    named = sorted({swap.candidate for swap in SWAPS if swap.kind == "vae"} - {OWN})
    held = evaluation_third()
    return [name for name in named if StudySwap(base=BASE, kind="vae", candidate=name) not in held]


def outcome(name: str) -> float:
    """Relative error at the last step, at the better rate. Curves of rates that are measured are read, not repeated."""
    cell = Cell(name=f"{BASE}/vae", base=base_name(BASE), kind="vae", candidate=name, image_size=SIZE)
    record = run_cell(cell, seed=0, rates=RATES, steps=STEPS, results=CURVES)
    return min(row["errors"][-1] for row in record["rates"].values() if not row["diverged"])


def measure(name: str, images: torch.Tensor) -> dict[str, float]:
    vae = load_vae(name)
    with torch.no_grad():
        latents = torch.cat([vae.encode(x) for x in images.split(32)])
        decoded = torch.cat([vae.decode(z) for z in latents.split(32)]).clamp(-1, 1)
    psnr = (10 * torch.log10(4 / (decoded - images).square().mean((1, 2, 3)))).mean().item()
    rows = {row["metric"]: row["value"] for row in panel(vae, images, latents)}
    return {"PSNR": psnr, "latent values per image": float(latents[0].numel())} | rows


def correlations(vaes: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Spearman of every figure with the outcome, over the candidates."""
    outcomes = [row[OUTCOME] for row in vaes.values()]
    ranks = {}
    for metric in [key for key in next(iter(vaes.values())) if key != OUTCOME]:
        result = spearmanr([row[metric] for row in vaes.values()], outcomes)
        ranks[metric] = {"spearman": round(float(result.statistic), 3), "p_value": round(float(result.pvalue), 3)}
    return ranks


def main() -> None:
    torch.set_num_threads(1)
    images = to_images(load_images("embedded").split(False).subset(range(COUNT)).pixels(SIZE))
    vaes: dict[str, Any] = {}
    for candidate in candidates():
        name = name_of(candidate)
        vaes[candidate] = {OUTCOME: round(outcome(name), 4)} | measure(name, images)
        print(candidate, json.dumps(vaes[candidate]), flush=True)
    study = {"outcome": OUTCOME, "base": BASE, "ranks": correlations(vaes), "vaes": vaes}
    study["command"] = "python experiments/studies/panel_study.py"
    (RESULTS / "panel_study.json").write_text(json.dumps(study, indent=1) + "\n")
    print(json.dumps(study["ranks"], indent=1))


if __name__ == "__main__":
    main()
