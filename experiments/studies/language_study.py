"""What a text encoder is worth in 14 languages, to a base that reads English.

python experiments/studies/language_study.py [CANDIDATE ...] [--num-images 512] [--steps 200]
python experiments/studies/language_study.py table                 # the table of docs/languages.md

Data: openmoji-languages; the base reads the English titles of its held-out images, the candidate the names of the same
images in each language. A gain is the loss of the best prompt-blind prediction less that with the own prompt, noise
levels weighted as in a swap (those of little weight are left out), over the base's own gain with English on the same
images. `before` is the closed form
(mean tokens, then transported tokens), `after` distillation through the frozen core on prompts of all languages. A
language is separated where the 95% interval of its gain lies above 0. Rows go to
experiments/results/language_study.json.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sanakit.alignment import text as alignment_text
from sanakit.assembly import LatentDiffusion
from sanakit.config import make_config
from sanakit.data import load_images
from sanakit.data.dataset import LatentDataset
from sanakit.evaluation.blind import blind_held_out
from sanakit.evaluation.held_out import held_out
from sanakit.flow import EVAL_SIGMAS
from sanakit.loading import load_base
from sanakit.run import RunFolder
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.context import WEIGHED, Swap
from sanakit.swap.distill import Teacher
from sanakit.swap.early import decide_image_size
from sanakit.swap.plan import build
from sanakit.swap.quality import prompt_weights
from sanakit.swap.settings import options_of
from sanakit.training.loop import fit, new_state

RESULTS = Path(__file__).parents[1] / "results" / "language_study.json"
CANDIDATES = ("minilm", "multilingual-e5-packaged", "gemma-3-270m-gguf")
RESAMPLED = 1000
LEAST_WEIGHT = 0.1  # of a noise level that is evaluated


class FewImages(Swap):
    """A swap on the first images of the training split, in its random order, and all held-out ones."""

    num_images: int

    @property
    def splits(self) -> Any:
        train, test = self.images.split(False), self.images.split(True)
        return train.subset(range(min(self.num_images, len(train)))), test


def open_swap(candidate: str, options: argparse.Namespace) -> FewImages:
    train = {"seed": options.seed, "max_steps": options.steps, "strategy": "distill"}
    values = {"base": "tiny-sana", "data": {"source": "openmoji-languages"}, "train": train}
    asked = make_config(values | {"text_encoder": {"name": candidate}})
    config = decide_image_size(asked, load_base("tiny-sana").card["image_size"])
    swap = FewImages(config=config, run=RunFolder(Path(), config), progress=show)
    swap.num_images = options.num_images
    return swap


def show(label: str, done: int, total: int) -> None:
    if done == total:
        print(f"  {label}: {total}", flush=True)


def in_language(data: LatentDataset, number: int) -> LatentDataset:
    """The same images, each with its caption in one language alone."""
    return replace(data, first=data.first + number, count=torch.ones_like(data.count))


@dataclass(frozen=True)
class Levels:
    """sigmas: the noise levels that are evaluated. weights: theirs, sum 1. (S,) unit: the base's gain."""

    sigmas: tuple[float, ...]
    weights: np.ndarray
    unit: float = 1.0

    def gains(self, system: LatentDiffusion, data: LatentDataset) -> np.ndarray:
        """Of every image, in units of the base's. (N,)"""
        sides = [one(system, data, count=len(data), sigmas=self.sigmas) for one in (blind_held_out, held_out)]
        return np.asarray(self.weights @ (sides[0].losses - sides[1].losses).double().numpy() / self.unit)

    def row(self, system: LatentDiffusion, data: LatentDataset) -> dict[str, float]:
        """The mean with its 95% bootstrap interval over the images."""
        gains = self.gains(system, data)
        draws = np.random.default_rng(0).integers(len(gains), size=(RESAMPLED, len(gains)))
        low, high = np.quantile(gains[draws].mean(1), [0.025, 0.975])
        return {"gain": round(float(gains.mean()), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def levels_of(base: LatentDiffusion, train: LatentDataset, test: LatentDataset) -> Levels:
    """By the base's gain on images of the training split."""
    weights = prompt_weights(*(one(base, train, count=WEIGHED) for one in (held_out, blind_held_out)))
    chosen = weights >= LEAST_WEIGHT
    sigmas = tuple(sigma for sigma, one in zip(EVAL_SIGMAS, chosen, strict=True) if one)
    levels = Levels(sigmas, weights[chosen] / weights[chosen].sum())
    return replace(levels, unit=float(levels.gains(base, test).mean()))


def by_language(system: LatentDiffusion, swap: FewImages, levels: Levels) -> dict[str, Any]:
    test, languages = swap.candidate_data[1], swap.images.caption_kinds
    return {name: levels.row(system, in_language(test, number)) for number, name in enumerate(languages)}


def study(candidate: str, options: argparse.Namespace) -> dict[str, Any]:
    swap = open_swap(candidate, options)
    base, (train, test), (base_train, base_test) = swap.base_system, swap.candidate_data, swap.base_data
    levels = levels_of(base, base_train, base_test)
    row: dict[str, Any] = {
        "candidate": candidate,
        "training_images": len(train),
        "held_out_images": len(test),
        "steps": options.steps,
        "seed": options.seed,
        "sigmas": levels.sigmas,
        "base_gain": round(levels.unit, 4),
        "base": levels.row(base, base_test),
    }
    strategy = STRATEGIES.get("distill")
    start = time.process_time()
    parts = base, swap.candidate, strategy, train, base_train
    alone, scores = without_transport(lambda: build(*parts, seed=options.seed))
    row["mean tokens"] = levels.row(alone, test) | {"r2": round(float(scores["caption_r2"]), 3)}
    print(json.dumps(row), flush=True)
    system, scores = build(*parts, seed=options.seed)
    row["transported tokens"] = levels.row(system, test) | {"r2": round(float(scores["caption_r2"]), 3)}
    row["before"] = by_language(system, swap, levels)
    print(json.dumps(row), flush=True)
    asked = options_of(swap.config, strategy)
    state = new_state(system.core, strategy.parameter_groups(system.core), asked)
    draw = Teacher(base=base, data=base_train, seed=options.seed).draws(system, train, asked)
    fit(system, train, asked, state, until=options.steps, draw=draw)
    row["after"] = by_language(system, swap, levels)
    row["not_separated"] = [language for language, one in row["after"].items() if one["low"] <= 0]
    row["cpu_seconds"] = round(time.process_time() - start)
    return row


def without_transport(work: Any) -> Any:
    """The closed form of mean tokens alone."""
    before = alignment_text.has_transport
    alignment_text.has_transport = lambda: False
    try:
        return work()
    finally:
        alignment_text.has_transport = before


def table() -> str:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = ["| language | " + " | ".join(f"`{row['candidate']}` before / after" for row in rows) + " |"]
    lines.append("|---" * (1 + len(rows)) + "|")
    for language in rows[0]["before"]:
        cells = []
        for row in rows:
            before, after = row["before"][language], row["after"][language]
            cells.append(f"{before['gain']:.2f} / {after['gain']:.2f} ({after['low']:.2f} to {after['high']:.2f})")
        lines.append(f"| {language} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("candidates", nargs="*", default=CANDIDATES)
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.candidates == ["table"]:
        print(table())
        return
    torch.manual_seed(options.seed)
    load_images("openmoji-languages")
    for candidate in options.candidates:
        row = study(candidate, options)
        kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
        rows = [one for one in kept if one["candidate"] != candidate] + [row]
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
