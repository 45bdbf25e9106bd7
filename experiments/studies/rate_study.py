"""How does the best learning rate move with the width of a core?

    python experiments/studies/rate_study.py                     # every unfinished cell; run again to go on
    python experiments/studies/rate_study.py --cell tiny-sana/vae --seed 1
    python experiments/studies/rate_study.py --base path:DIR --cell wide/vae --image-size 96  # a core of another width

A cell is one swap into one core: `finetune` from the closed form of the swapped layers (`train.start: align`), at every
rate of RATES, constant after the warm-up, for the steps of a race (100). Errors are relative (1 = the base's), at the
rungs of the race. Every rate is written to experiments/results/rate_study.json as soon as it is measured, so an
interrupted cell repeats one rate at most. A cell takes about eight times a race of one strategy: minutes.
"""

import argparse
import json
import math
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from study_world import base_name

from sanakit.config import make_config
from sanakit.run import RunFolder
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.context import Swap
from sanakit.swap.plan import build
from sanakit.swap.race import RaceSetup, advance, enter
from sanakit.swap.rungs import rungs
from sanakit.swap.settings import options_of

RESULTS = Path("experiments/results/rate_study.json")
RATES = (1.6e-2, 8e-3, 4e-3, 2e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4)  # a factor of two apart
STEPS = 100
STRATEGY = "finetune"
CANDIDATES = {"vae": "dc-f16c16", "text": "wordllama"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One swap into one core. kind: "vae" or "text", of the candidate. data: a source, as of `--data`."""

    name: str
    base: str
    kind: str
    candidate: str
    image_size: int
    data: str = "embedded"
    batch_size: int = 32
    held_out: int = 128
    adapter: str = ""  # joins a VAE's candidate instead of the linear layers


CELLS = [
    Cell(name=f"{core}/{kind}", base=base, kind=kind, candidate=CANDIDATES[kind], image_size=size)
    for core, base, size in (("dc-minilm", base_name("dc-minilm"), 64), ("tiny-sana", "tiny-sana", 96))
    for kind in CANDIDATES
]


def swap_of(cell: Cell, seed: int) -> Swap:
    values = {
        "base": cell.base,
        "vae" if cell.kind == "vae" else "text_encoder": {"name": cell.candidate},
        "data": {"source": cell.data, "image_size": cell.image_size},
        "train": {"seed": seed, "batch_size": cell.batch_size},
        "smoke": {"held_out": cell.held_out},
    }
    config = make_config(values)
    return Swap(config=config, run=RunFolder(Path(), config))


def run_cell(cell: Cell, *, seed: int, rates: tuple[float, ...], steps: int, results: Path) -> dict[str, Any]:
    """Measure the rates that the file does not hold yet; the cell's record, as it is written."""
    key = "--".join([cell.name, cell.candidate, str(seed), *([cell.adapter] if cell.adapter else [])])
    key += f"--{steps}" if steps != STEPS else ""
    record = read(results).get(key) or {"rates": {}}
    missing = [rate for rate in rates if f"{rate:g}" not in record["rates"]]
    if not missing:
        return record
    swap, strategy = swap_of(cell, seed), STRATEGIES.get(STRATEGY)
    (train, test), base_train = swap.candidate_data, swap.base_data[0]
    parts = swap.base_system, swap.candidate, strategy, train, base_train
    start, _ = build(*parts, seed=seed, adapter=cell.adapter or swap.config.adapter.name)
    options = options_of(swap.config, strategy)
    setup = RaceSetup(data=train, test=test, target=swap.target, count=swap.num_held_out, options=options)
    core = start.core
    record |= {
        "base": cell.base,
        "kind": cell.kind,
        "candidate": cell.candidate,
        "seed": seed,
        "budget": steps,
        "parameters": sum(p.numel() for p in core.parameters()),
        "width": core.config.num_attention_heads * core.config.attention_head_dim,
        "command": f"python experiments/studies/rate_study.py --cell {cell.name} --seed {seed} --steps {steps}"
        + (f" --adapter {cell.adapter}" if cell.adapter else ""),
    }
    for rate in missing:
        arm = enter(setup, strategy, replace(start, core=deepcopy(core)), budget=steps, learning_rate=rate)
        for rung in rungs(steps):
            advance(setup, arm, rung)
        record["rates"][f"{rate:g}"] = {
            "steps": arm.steps,
            "errors": [round(float(errors.mean()), 4) for errors in arm.errors_by_evaluation],
            "diverged": arm.diverged,
        }
        record["best"] = {str(rung): best_rate(record["rates"], rung) for rung in rungs(steps)}
        write(results, key, record)
        print(f"{key} {rate:g}: {record['rates'][f'{rate:g}']}", flush=True)
    return record


def best_rate(rates: dict[str, Any], step: int) -> float | None:
    """The rate of the lowest error at a step, by the parabola in the logarithm of the rate through it and its two
    neighbours; the measured rate at an end, None where no rate got there."""
    points = sorted(
        (float(r), row["errors"][row["steps"].index(step)]) for r, row in rates.items() if step in row["steps"]
    )
    if not points:
        return None
    lowest = min(range(len(points)), key=lambda i: points[i][1])
    if lowest in (0, len(points) - 1):
        return points[lowest][0]
    (x0, y0), (x1, y1), (x2, y2) = ((math.log(rate), error) for rate, error in points[lowest - 1 : lowest + 2])
    slopes = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (slopes[1] - slopes[0]) / (x2 - x0)
    vertex = (x0 + x1) / 2 - slopes[0] / (2 * bend) if bend else x1
    return float(f"{math.exp(min(max(vertex, x0), x2)):.3g}")


def read(results: Path) -> dict[str, Any]:
    return dict(json.loads(results.read_text(encoding="utf-8"))["cells"]) if results.is_file() else {}


def write(results: Path, key: str, record: dict[str, Any]) -> None:
    cells = read(results) | {key: record}
    machine = f"one thread, torch {torch.__version__}"
    aside = results.with_suffix(".tmp")
    aside.write_text(json.dumps({"cells": cells, "machine": machine}, indent=1) + "\n", encoding="utf-8")
    aside.replace(results)


def summary(results: Path) -> None:
    for key, record in read(results).items():
        half = str(rungs(record["budget"])[-2])
        print(
            f"{key:40} {record['parameters']:>12,} parameters, width {record['width']:>5}: best rate at step {half} "
            f"{record['best'][half]}, at step {record['budget']} {record['best'][str(record['budget'])]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cell", help=f"one of {', '.join(cell.name for cell in CELLS)}; with --base NAME/vae or NAME/text"
    )
    parser.add_argument("--base", help="a core of another width, as of `sanakit --base`")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--adapter", default="", help="conv-latents or mlp-latents, of a VAE's cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rates", type=lambda text: tuple(float(t) for t in text.split(",")), default=RATES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = [cell for cell in CELLS if args.cell in (None, cell.name)]
    if args.base:
        kind = str(args.cell).rpartition("/")[2]
        if kind not in CANDIDATES:
            parser.error("--base needs --cell NAME/vae or NAME/text")
        cells = [
            Cell(name=args.cell, base=args.base, kind=kind, candidate=CANDIDATES[kind], image_size=args.image_size)
        ]
    if not cells:
        parser.error(f"no cell {args.cell}; known: {', '.join(cell.name for cell in CELLS)}")
    for cell in (replace(cell, adapter=args.adapter) for cell in cells):
        run_cell(cell, seed=args.seed, rates=args.rates, steps=args.steps, results=RESULTS)
    summary(RESULTS)


if __name__ == "__main__":
    main()
