"""Draw docs/tiny-sana.png: eight held-in prompts of the embedded world and, below them, eight held-out ones, each as
its sample over the image that has this name. The prompts are enriched captions of OpenMoji, whose titles say what an
image shows; --seed draws others, --data among others.

    python experiments/assets/sample_grid.py
    python experiments/assets/sample_grid.py --recognise 256

--recognise N: instead of drawing, how much nearer N samples a half are to the image of their own name than to the
images of the other N - 1, as 8 x 8 thumbnails (mean squared difference); chance is .50 nearer than own.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import adaptive_avg_pool2d

from sanakit.data import load_images
from sanakit.data.cache import to_images
from sanakit.evaluation.figures import to_uint8
from sanakit.loading import load_base
from sanakit.sampling import sample_images

CELL, REAL, LABEL, ACROSS = 96, 48, 27, 8
ROW = CELL + REAL + LABEL


def recognise(base: str, data: str, count: int, seed: int) -> None:
    system = load_base(base).system()
    for label, held_out in (("held in", False), ("held out", True)):
        half = load_images(data).split(held_out)
        chosen = np.random.default_rng(seed).choice(len(half), min(count, len(half)), replace=False)
        names = [half.captions[i][-1] for i in chosen]
        parts = [sample_images(system, names[i : i + 64], seed=i) for i in range(0, len(names), 64)]
        samples = adaptive_avg_pool2d(torch.cat(parts), 8).flatten(1)
        dataset = adaptive_avg_pool2d(to_images(half.pixels(CELL)[chosen]), 8).flatten(1)
        distance = torch.cdist(samples, dataset)
        nearer = (distance < distance.diagonal()[:, None]).float().sum(1)
        share = nearer / (len(names) - 1)
        print(
            f"{label}: {len(names)} samples; of the others' images {share.median():.3f} are nearer than the own one "
            f"(median), {share.mean():.3f} (mean); own image nearest in {(nearer == 0).float().mean():.1%}, chance "
            f"{1 / len(names):.1%}"
        )


def label_lines(prompt: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> list[str]:
    """The prompt without its style in at most two lines that are as wide as a cell."""
    lines = [""]
    for word in prompt.rsplit(",", 1)[0].split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font) > CELL - 4:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines[:2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny-sana")
    parser.add_argument("--data", default="openmoji")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--recognise", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/tiny-sana.png"))
    args = parser.parse_args()
    if args.recognise:
        recognise(args.base, args.data, args.recognise, args.seed)
        return
    prompts, real = [], []
    for held_out in (False, True):
        half = load_images(args.data).split(held_out)
        chosen = sorted(np.random.default_rng(args.seed).choice(len(half), ACROSS, replace=False))
        prompts += [half.captions[i][-1] for i in chosen]
        real += [half.pixels(CELL)[i] for i in chosen]
    images = sample_images(load_base(args.base).system(), prompts, seed=0)

    sheet = Image.new("RGB", (ACROSS * CELL, 2 * ROW), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for i, (prompt, sample, image) in enumerate(zip(prompts, to_uint8(images), real, strict=True)):
        left, top = i % ACROSS * CELL, i // ACROSS * ROW
        sheet.paste(Image.fromarray(sample).resize((CELL, CELL)), (left, top))
        small = Image.fromarray(image).resize((REAL, REAL), Image.Resampling.LANCZOS)
        sheet.paste(small, (left + (CELL - REAL) // 2, top + CELL))
        for number, line in enumerate(label_lines(prompt, draw, font)):
            draw.text((left + CELL / 2, top + CELL + REAL + 1 + 12 * number), line, "black", font, anchor="ma")
    sheet.save(args.out, optimize=True)
    for label, some in (("held in", prompts[:ACROSS]), ("held out", prompts[ACROSS:])):
        print(f"{label}: {'; '.join(some)}")


if __name__ == "__main__":
    main()
