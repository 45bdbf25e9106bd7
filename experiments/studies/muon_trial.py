"""Is Muon worth having beside AdamW?

    python experiments/studies/muon_trial.py                # every run that is not finished; the same command goes on
    python experiments/studies/muon_trial.py --seed 1

`finetune` of one VAE swap from `train.start: align`, constant rate after the warm-up, 500 steps, every optimiser at its
own rates. Muon (torch.optim.Muon) takes the matrices of the core; everything that is no matrix (convolutions, norms,
biases) is trained by AdamW at the same rate, as Muon's authors do. The seconds (CPU time of the process) hold the
evaluations too, the same for both, so the curves can be compared at equal seconds. Written to
experiments/results/muon_trial.json, one record a run.
"""

import argparse
import json
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rate_study import CELLS, read, swap_of, write

from sanakit.strategies.base import STRATEGIES
from sanakit.swap.plan import build
from sanakit.swap.race import RaceSetup, advance, enter
from sanakit.swap.settings import options_of
from sanakit.training.optimizers import OPTIMIZERS, Record

RESULTS = Path("experiments/results/muon_trial.json")
CELL = "tiny-sana/vae"
STRATEGY = "finetune"
STEPS = 500
EVALUATED = (50, 100, 200, 300, 400, 500)
RATES = {"adamw": (1e-3, 2e-3, 4e-3), "muon": (1e-3, 2e-3, 4e-3, 8e-3)}


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for matrices, AdamW for the rest; one list of parameter groups, so a schedule reaches both."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, weight_decay: float) -> None:
        split = [
            (group | {"params": [p for p in group["params"] if (p.ndim == 2) == matrices]}, matrices)
            for group in groups
            for matrices in (True, False)
        ]
        kinds = {
            True: [g for g, m in split if m and g["params"]],
            False: [g for g, m in split if not m and g["params"]],
        }
        self.inner: list[torch.optim.Optimizer] = []
        if kinds[True]:  # the rate of AdamW's scale, so that the two share one schedule
            muon = torch.optim.Muon(kinds[True], lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            self.inner.append(muon)
        if kinds[False]:
            self.inner.append(
                torch.optim.AdamW(kinds[False], lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True)
            )
        super().__init__([group for inner in self.inner for group in inner.param_groups], {})
        self.param_groups = [group for inner in self.inner for group in inner.param_groups]

    def step(self, closure: Any = None) -> None:
        for inner in self.inner:
            inner.step()


def run(optimizer: str, rate: float, *, seed: int) -> dict[str, Any]:
    """One curve: errors (1 = the base's) and seconds of training at the evaluated steps."""
    cell = next(cell for cell in CELLS if cell.name == CELL)
    swap, strategy = swap_of(cell, seed), STRATEGIES.get(STRATEGY)
    (train, test), base_train = swap.candidate_data, swap.base_data[0]
    start, _ = build(swap.base_system, swap.candidate, strategy, train, base_train, seed=seed)
    options = replace(options_of(swap.config, strategy), optimizer=optimizer)
    setup = RaceSetup(data=train, test=test, target=swap.target, count=swap.num_held_out, options=options)
    arm = enter(setup, strategy, replace(start, core=deepcopy(start.core)), budget=STEPS, learning_rate=rate)
    seconds, total = [0.0], 0.0
    for step in EVALUATED:
        began = time.process_time()
        advance(setup, arm, step)
        total += time.process_time() - began
        seconds.append(round(total, 1))
        if arm.diverged:
            break
    errors = [round(float(e.mean()), 4) for e in arm.errors_by_evaluation]
    return {"steps": arm.steps, "errors": errors, "seconds": seconds, "diverged": arm.diverged}


def summary() -> None:
    for key, record in read(RESULTS).items():
        last = record["errors"][-1] if not record["diverged"] else "diverged"
        print(f"{key:28} error after {record['steps'][-1]} steps {last}, {record['seconds'][-1]} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    OPTIMIZERS["muon"] = Record(make=MuonWithAdamW, bytes_a_parameter=4)
    for optimizer, rates in RATES.items():
        for rate in rates:
            key = f"{optimizer} {rate:g} seed {args.seed}"
            if key in read(RESULTS):
                continue
            record = run(optimizer, rate, seed=args.seed)
            write(RESULTS, key, record)
            print(f"{key}: {json.dumps(record)}", flush=True)
    summary()


if __name__ == "__main__":
    main()
