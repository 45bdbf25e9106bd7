"""Draw docs/tiny-sana.png: eight held-in and eight held-out prompts of the embedded world.

python experiments/sample_grid.py
"""

from pathlib import Path

import numpy as np

from sanakit.data import load_pictures
from sanakit.sampling import sample_images
from sanakit.swap.figures import save_grid
from sanakit.swap.plan import load_base


def main() -> None:
    pictures = load_pictures("embedded")
    prompts = []
    for held_out in (False, True):
        half = pictures.split(held_out)
        chosen = np.random.default_rng(2).choice(len(half), 8, replace=False)
        prompts += [half.captions[i][-1] for i in sorted(chosen)]
    images = sample_images(load_base("tiny-sana").system(), prompts, seed=0)
    row = save_grid(Path("docs"), "tiny-sana", images, "samples", "tiny-sana", "")
    (Path("docs") / row["file"]).replace("docs/tiny-sana.png")
    Path("docs/figures").rmdir()
    for label, half in (("held in", prompts[:8]), ("held out", prompts[8:])):
        print(f"{label}: {'; '.join(half)}")


if __name__ == "__main__":
    main()
