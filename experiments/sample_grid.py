"""Draw docs/tiny-sana.png: eight held-in prompts of the embedded world, and below them eight held-out ones, each under
its sample. The prompts are drawn, not chosen; --seed draws others.

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

CELL, LABEL, ACROSS = 96, 15, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny-sana")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/tiny-sana.png"))
    args = parser.parse_args()
    prompts = []
    for held_out in (False, True):
        half = load_pictures("embedded").split(held_out)
        chosen = np.random.default_rng(args.seed).choice(len(half), ACROSS, replace=False)
        prompts += [half.captions[i][-1] for i in sorted(chosen)]
    images = sample_images(load_base(args.base).system(), prompts, seed=0)

    sheet = Image.new("RGB", (ACROSS * CELL, 2 * (CELL + LABEL)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for i, (prompt, picture) in enumerate(zip(prompts, to_uint8(images), strict=True)):
        left, top = i % ACROSS * CELL, i // ACROSS * (CELL + LABEL)
        sheet.paste(Image.fromarray(picture).resize((CELL, CELL)), (left, top))
        text = prompt.split(",")[0]
        while draw.textlength(text, font) > CELL - 4:
            text = text[:-2].rstrip() + "…"
        draw.text((left + CELL / 2, top + CELL + 1), text, "black", font, anchor="ma")
    sheet.save(args.out, optimize=True)
    for label, some in (("held in", prompts[:ACROSS]), ("held out", prompts[ACROSS:])):
        print(f"{label}: {'; '.join(some)}")


if __name__ == "__main__":
    main()
