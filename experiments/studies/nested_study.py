"""A candidate with more values a token than the base: which start is best, before any step and after 50 and 100.

    python experiments/studies/nested_study.py 0 1     # seeds; adds their rows to experiments/results/nested_study.json

Swap: pca-f16c32 to pca-f16c48 on the study's base pca-wordllama (`study_world.py base`, `study_candidates.py
pca-f16c48`). Starts: `plain` is the closed form of patch embedding and output projection; `zero` reads the directions
that the base knows and predicts nothing along the others (DA-VAE, arXiv 2603.22125), the base's own output projection
turned; `carried` is `align` (sanakit/alignment/carried.py); `blocks` is align-blocks. All layers are trained at 2e-3,
32 images a step, moving average .98.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from study_plan import StudyRun, StudySwap

from sanakit.alignment.coupling import patch_rotation
from sanakit.assembly import LatentDiffusion
from sanakit.evaluation.held_out import averaged, held_out
from sanakit.strategies.base import STRATEGIES
from sanakit.swap import plan
from sanakit.training.loop import TrainOptions, fit, new_state

RESULTS = Path(__file__).parents[1] / "results" / "nested_study.json"
SWAP = StudySwap(base="pca-wordllama", kind="vae", candidate="pca-f16c48")
STEPS = (50, 100)
RATE = 2e-3


def started(name: str, swap: Any, seed: int) -> LatentDiffusion:
    """The swapped system at one of the starts."""
    data, base_data = swap.candidate_data[0], swap.base_data[0]
    strategy = STRATEGIES.get("align-blocks" if name == "blocks" else "align")
    carry = plan.carry_rest
    if name != "carried":
        plan.carry_rest = lambda *args, **options: {}
    try:
        system = plan.build(swap.base_system, swap.candidate, strategy, data, base_data, seed=seed)[0]
    finally:
        plan.carry_rest = carry
    if name == "zero":
        turn_head(
            system,
            swap.base_system,
            patch_rotation(system.core, swap.base_system.core, data.latents, base_data.latents),
        )
    return system


@torch.no_grad()
def turn_head(system: LatentDiffusion, base: LatentDiffusion, rotation: torch.Tensor) -> None:
    """The base's output projection along the directions that it knows,
    zero along the others (patches of one latent)."""
    system.core.proj_out.weight.copy_(rotation.mT @ base.core.proj_out.weight)
    system.core.proj_out.bias.copy_(rotation.mT @ base.core.proj_out.bias)


def errors(system: LatentDiffusion, swap: Any, seed: int) -> list[float]:
    """Relative error before any step and after STEPS."""

    def measure():
        return float(swap.target.relative(held_out(system, swap.candidate_data[1], count=swap.num_held_out)).mean())

    options = TrainOptions(max_steps=STEPS[-1], batch_size=32, learning_rate=RATE, ema_decay=0.98, seed=seed, warmup=10)
    options = replace(options, **constant())
    curve = [measure()]
    state = new_state(system.core, STRATEGIES.get("finetune").parameter_groups(system.core), options)
    for step in STEPS:
        fit(system, swap.candidate_data[0], options, state, until=step)
        with averaged(system.core, state.ema):
            curve.append(measure())
    return [round(error, 4) for error in curve]


def constant() -> dict[str, Any]:
    """The option that keeps the rate constant, as the race has it."""
    from sanakit.swap.race import OWN_OPTIONS

    return {key: value for key, value in OWN_OPTIONS.items() if key in ("decay", "schedule")}


def main() -> None:
    from decision_study import open_swap

    torch.set_num_threads(1)
    for seed in map(int, sys.argv[1:] or ["0"]):
        swap = open_swap(StudyRun(swap=SWAP, seed=seed, evaluation=False))
        for name in ("plain", "zero", "carried", "blocks"):
            row = {"start": name, "seed": seed, "errors": errors(started(name, swap, seed), swap, seed)}
            print(json.dumps(row), flush=True)
            record = (
                json.loads(RESULTS.read_text())
                if RESULTS.is_file()
                else {"steps": [0, *STEPS], "rate": RATE, "rows": []}
            )
            record["rows"] = [r for r in record["rows"] if (r["start"], r["seed"]) != (name, seed)] + [row]
            record["base"] = swap.base.card["quality"] | {"recipe": swap.base.card["recipe"]}
            RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
