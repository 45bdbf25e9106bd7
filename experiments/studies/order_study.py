"""Two swaps after each other: VAE, then text encoder, or the other way round. Which order is cheaper?

python experiments/studies/order_study.py [--vae pca-f16c32] [--text-encoder wordllama] [--steps 50] [--seeds 0 1]

tiny-sana on the embedded images. Each swap starts from the closed form (align) and trains every layer for the same
number of steps of 32 images; the model of the first swap, its weights averaged, is the base of the second. Both orders
end with the same two parts, so that their held-out losses compare. Rows go to experiments/results/order_study.json.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sanakit.assembly import LatentDiffusion
from sanakit.data import ImageDataset, load_images
from sanakit.data.dataset import LatentDataset, build_dataset
from sanakit.evaluation.held_out import averaged, held_out
from sanakit.loading import load_base, load_text_encoder, load_vae
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.plan import build
from sanakit.swap.start import starting_at
from sanakit.text_encoders import TextEncoder
from sanakit.training.loop import TrainOptions, fit, new_state
from sanakit.vaes import VAE

RESULTS = Path(__file__).parents[1] / "results" / "order_study.json"
EVALUATED_AT = (0, 0.2, 0.5, 1)  # share of the steps of a swap
HELD_OUT = 256


@dataclass(frozen=True)
class World:
    """Both splits, and latents and embeddings of them by any two parts."""

    train: ImageDataset
    test: ImageDataset
    size: int

    def data(self, vae: VAE, encoder: TextEncoder) -> tuple[LatentDataset, LatentDataset]:
        splits = ((self.train, True), (self.test, False))
        train, test = (build_dataset(vae, encoder, split, self.size, mirror=mirror) for split, mirror in splits)
        return train, test


def swap_in(
    base: LatentDiffusion, candidate: VAE | TextEncoder, world: World, steps: int, seed: int
) -> tuple[LatentDiffusion, dict[str, float]]:
    """The swapped system with its averaged weights, and its held-out losses by step."""
    is_vae = isinstance(candidate, VAE)
    vae, encoder = (candidate, base.text_encoder) if is_vae else (base.vae, candidate)
    assert isinstance(vae, VAE) and isinstance(encoder, TextEncoder)
    (train, test), (base_train, _) = world.data(vae, encoder), world.data(base.vae, base.text_encoder)
    strategy = starting_at(STRATEGIES.get("finetune"), "align")
    system, _ = build(base, candidate, strategy, train, base_train, seed=seed)
    options = TrainOptions(
        max_steps=steps, batch_size=32, learning_rate=strategy.learning_rate, ema_decay=0.95, seed=seed, warmup=10
    )
    state = new_state(system.core, strategy.parameter_groups(system.core), options)
    losses = {}
    for share in EVALUATED_AT:
        until = round(share * steps)
        if until:
            fit(system, train, options, state, until=until)
        with averaged(system.core, state.ema):
            losses[str(until)] = round(held_out(system, test, count=HELD_OUT).loss, 4)
    for name, value in system.core.state_dict().items():
        value.copy_(state.ema[name])
    return system, losses


def follow(order: tuple[VAE | TextEncoder, VAE | TextEncoder], world: World, steps: int, seed: int) -> dict[str, Any]:
    start, base = time.process_time(), load_base("tiny-sana").system()
    first, losses = swap_in(base, order[0], world, steps, seed)
    _, then = swap_in(first, order[1], world, steps, seed)
    names = [part.name for part in order]
    return {"order": names, "seed": seed, "first": losses, "second": then, "cpu_seconds": time.process_time() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", default="pca-f16c32")
    parser.add_argument("--text-encoder", default="wordllama")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    images, base = load_images("embedded"), load_base("tiny-sana")
    world = World(images.split(False), images.split(True), base.card["image_size"])
    vae, encoder = load_vae(options.vae), load_text_encoder(options.text_encoder)
    rows = []
    for seed in options.seeds:
        for order in ((vae, encoder), (encoder, vae)):
            rows.append(follow(order, world, options.steps, seed))
            print(json.dumps(rows[-1]), flush=True)
    record = {"steps": options.steps, "held_out_images": HELD_OUT, "rows": rows}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
