"""Does a colour word in the prompt decide the colour of the sample? Held-out prompts of the embedded world, once as
they are and once with their first colour word replaced by another that the image does not have, from the same noise.

    python experiments/studies/colour_words.py --count 200

A swapped word is obeyed where the sample shows more of the asked colour than of the original one; it dominates where
it is the first colour that is measured on the sample (sanakit/data/embedded_captions.py). Samples are drawn as
`sample_grid.py` draws them (24 Euler steps, guidance 3). Writes experiments/results/colour_words.json.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sanakit.data import load_images
from sanakit.data.embedded_captions import COLOURS, ENRICHED, GREYS, colour_shares, measure_colours
from sanakit.evaluation.figures import to_uint8
from sanakit.loading import load_base
from sanakit.sampling import sample_images

RESULTS = Path("experiments/results/colour_words.json")
CHROMATIC = tuple(colour for colour in COLOURS if colour not in GREYS)
CHUNK = 50


@dataclass(frozen=True)
class Swapped:
    """A held-out prompt, its first colour word, the word that replaces it, and the prompt with that one."""

    prompt: str
    original: str
    asked: str
    swapped: str


def swapped_prompts(captions: Sequence[str], count: int, seed: int) -> list[Swapped]:
    """The first `count` captions that start with a chromatic colour word; the asked one is drawn among the other
    chromatic words that the caption does not hold."""
    generator, swapped = np.random.default_rng(seed), []
    for caption in captions:
        words = caption.replace(",", " ").split()
        if words[0] in CHROMATIC and len(swapped) < count:
            asked = str(generator.choice([colour for colour in CHROMATIC if colour not in words]))
            swapped.append(Swapped(caption, words[0], asked, asked + caption.removeprefix(words[0])))
    return swapped


def judge(images: np.ndarray, first: Sequence[str], second: Sequence[str]) -> dict[str, list[bool]]:
    """(N, H, W, 3) uint8 -> of every image, whether it shows more of the first colour than of the second, and whether
    the first is its main colour."""
    shares = [colour_shares(image) for image in images]
    main = [(measure_colours(image) or [""])[0] for image in images]
    more = [
        bool(share[COLOURS.index(a)] > share[COLOURS.index(b)])
        for share, a, b in zip(shares, first, second, strict=True)
    ]
    return {"more": more, "main": [a == colour for a, colour in zip(first, main, strict=True)]}


def share_of(values: Sequence[bool]) -> dict[str, float]:
    """A share with its 90% Wilson interval."""
    count, share, z = len(values), float(np.mean(values)), 1.645
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5 / (1 + z * z / count)
    return {"share": round(share, 3), "low": round(centre - half, 3), "high": round(centre + half, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny-sana")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    system = load_base(args.base).system()
    captions = [texts[ENRICHED] for texts in load_images("embedded").split(True).captions]
    rows = swapped_prompts(captions, args.count, args.seed)

    def sample(prompts: list[str]) -> np.ndarray:
        parts = [
            to_uint8(sample_images(system, prompts[start : start + CHUNK], seed=args.seed + start))
            for start in range(0, len(prompts), CHUNK)
        ]
        return np.concatenate([np.asarray(part) for part in parts])

    asked, original = [row.asked for row in rows], [row.original for row in rows]
    swapped = judge(sample([row.swapped for row in rows]), asked, original)
    kept = judge(sample([row.prompt for row in rows]), original, asked)
    by_colour = {
        colour: {
            "asked": sum(a == colour for a in asked),
            "obeyed": sum(m for m, a in zip(swapped["more"], asked, strict=True) if a == colour),
        }
        for colour in CHROMATIC
    }
    result = {
        "command": f"python experiments/studies/colour_words.py --count {args.count} --seed {args.seed}",
        "base": args.base,
        "prompts": len(rows),
        "swapped": {"obeyed": share_of(swapped["more"]), "main colour": share_of(swapped["main"])},
        "unchanged": {"shown more": share_of(kept["more"]), "main colour": share_of(kept["main"])},
        "by_colour": by_colour,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
