"""Draw docs/tiny-sana.png: eight held-in prompts of the embedded world and, below them, eight held-out ones, each as its
sample over the picture that has this name. The prompts are drawn among OpenMoji's names, which say what a picture shows
(titles of openclipart often do not); --seed draws others, --data among others.

    python experiments/sample_grid.py
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sanakit.data import load_pictures
from sanakit.sampling import sample_images
from sanakit.swap.figures import to_uint8
from sanakit.swap.plan import load_base

CELL, REAL, LABEL, ACROSS = 96, 48, 15, 8
ROW = CELL + REAL + LABEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny-sana")
    parser.add_argument("--data", default="openmoji")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/tiny-sana.png"))
    args = parser.parse_args()
    prompts, real = [], []
    for held_out in (False, True):
        half = load_pictures(args.data).split(held_out)
        chosen = sorted(np.random.default_rng(args.seed).choice(len(half), ACROSS, replace=False))
        prompts += [half.captions[i][-1] for i in chosen]
        real += [half.pixels(CELL)[i] for i in chosen]
    images = sample_images(load_base(args.base).system(), prompts, seed=0)

    sheet = Image.new("RGB", (ACROSS * CELL, 2 * ROW), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for i, (prompt, sample, picture) in enumerate(zip(prompts, to_uint8(images), real, strict=True)):
        left, top = i % ACROSS * CELL, i // ACROSS * ROW
        sheet.paste(Image.fromarray(sample).resize((CELL, CELL)), (left, top))
        small = Image.fromarray(picture).resize((REAL, REAL), Image.Resampling.LANCZOS)
        sheet.paste(small, (left + (CELL - REAL) // 2, top + CELL))
        text = prompt.split(",")[0].encode("ascii", "ignore").decode()  # flags of regions carry invisible tags
        while draw.textlength(text, font) > CELL - 4:
            text = text[:-2].rstrip() + "…"
        draw.text((left + CELL / 2, top + CELL + REAL + 1), text, "black", font, anchor="ma")
    sheet.save(args.out, optimize=True)
    for label, some in (("held in", prompts[:ACROSS]), ("held out", prompts[ACROSS:])):
        print(f"{label}: {'; '.join(some)}")


if __name__ == "__main__":
    main()
