"""How good the unit of a text swap is: losses of tiny-sana on held-out images without the prompt,
estimated in several ways.

python experiments/studies/prompt_unit.py [--count 256] [--steps 50]    a few minutes on one core

Rows: the null prompt alone; the mean over other images' prompts; their combination (sanakit/evaluation/blind.py), which
is used; the same two of a base whose null prompt is garbage, as of one trained without prompt dropout; and the base
after `steps` more steps with every prompt dropped, which an estimate should not be far above. Prints the weights
of the noise levels and the table of docs/strategies.md.
"""

import argparse
import copy
from collections.abc import Iterator

import torch

from sanakit.data import load_images
from sanakit.data.dataset import build_dataset
from sanakit.evaluation.blind import blind_held_out
from sanakit.evaluation.held_out import HeldOut, averaged, held_out
from sanakit.loading import load_base
from sanakit.swap.quality import prompt_weights
from sanakit.text_encoders import PromptEmbeds
from sanakit.training.loop import TrainOptions, fit, new_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=256, help="held-out images")
    parser.add_argument("--steps", type=int, default=50, help="of training with every prompt dropped; 0 leaves it out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    system = load_base("tiny-sana").system()
    images = load_images("embedded")
    parts = (images.split(False), images.split(True).subset(range(arguments.count)))
    train, test = (
        build_dataset(system.vae, system.text_encoder, part, system.image_size, mirror=part is parts[0])
        for part in (parts[0] if arguments.steps else parts[0].subset(range(64)), parts[1])
    )
    own_result = held_out(system, test, count=arguments.count)
    weights = torch.from_numpy(
        prompt_weights(held_out(system, train, count=64), blind_held_out(system, train, count=64))
    )
    print("weights of the noise levels: " + ", ".join(f"{weight:.3f}" for weight in weights.tolist()))
    print("| without the prompt | " + " | ".join(f"{s:g}" for s in own_result.sigmas) + " | gain |")
    for name, result in [("(with it)", own_result), *estimates(system, train, test, arguments)]:
        gain = weights @ (result.losses - own_result.losses).double()
        cells = [f"{loss:.4f}" for loss in result.losses.mean(1).tolist()]
        noise = float(gain.std()) / len(gain) ** 0.5
        print(f"| {name} | {' | '.join(cells)} | {float(gain.mean()):.4f} +- {noise:.4f} |", flush=True)


def estimates(system, train, test, arguments) -> Iterator[tuple[str, HeldOut]]:  # type: ignore[no-untyped-def]
    count = arguments.count
    yield "null prompt", held_out(system, test, count=count, prompt="null")
    yield "combination", blind_held_out(system, test, count=count)
    garbage = copy.copy(system)
    drawn = torch.randn(system.null.embeds.shape, generator=torch.Generator().manual_seed(3))
    garbage.null = PromptEmbeds(3 * system.null.embeds.std() * drawn, torch.ones_like(system.null.mask))
    yield "null prompt, garbage", held_out(garbage, test, count=count, prompt="null")
    yield "combination, null prompt garbage", blind_held_out(garbage, test, count=count)
    if not arguments.steps:
        return
    dropped = copy.copy(system)
    dropped.core = copy.deepcopy(system.core)
    options = TrainOptions(
        max_steps=arguments.steps,
        batch_size=32,
        learning_rate=3e-4,
        schedule="constant",
        ema_decay=0.98,
        prompt_dropout=1.0,
    )
    state = new_state(dropped.core, [{"params": list(dropped.core.parameters()), "scale": 1.0}], options)
    fit(dropped, train, options, state)
    with averaged(dropped.core, state.ema):
        yield f"after {arguments.steps} steps without prompts", held_out(dropped, test, count=count, prompt="null")


if __name__ == "__main__":
    main()
