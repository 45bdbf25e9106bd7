"""How much of one VAE's latents a 3 x 3 linear map makes of another's, and what that costs in decoded images.

python experiments/studies/translation_study.py [--num-images 512]
Every pair of the packaged VAEs on images of the embedded world; the table is in docs/recipes.md.
"""

import argparse
import json
from pathlib import Path

import torch

from sanakit.alignment.translate_cache import fit_translation
from sanakit.data import load_images
from sanakit.data.cache import to_images
from sanakit.data.rows import Rows
from sanakit.loading import load_vae

NAMES = ("dc-f16c32", "dc-f16c16", "kl-f8c4", "pca-f16c32", "pca-f32c64")
SIZE = 96
RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULTS / "translation_study.json")
    options = parser.parse_args()
    everything = load_images("embedded")
    chosen = torch.randperm(len(everything), generator=torch.Generator().manual_seed(1))[: options.num_images]
    dataset = everything.subset(chosen.tolist())
    images = to_images(dataset.pixels(SIZE))
    vaes = {name: load_vae(name) for name in NAMES}
    latents = {name: torch.cat([vae.encode_raw(part) for part in images.split(32)]) for name, vae in vaes.items()}
    rows = []
    for source in NAMES:
        for target in NAMES:
            if source == target:
                continue
            cached = Rows([latents[source][:, None]], torch.arange(len(dataset)))
            result = fit_translation(vaes[source], vaes[target], dataset, cached, SIZE, num_images=len(dataset), seed=0)
            r2 = result.explained
            row = {
                "from": source,
                "to": target,
                "r2": round(r2.r2, 3),
                "low": round(r2.low, 3),
                "high": round(r2.high, 3),
                "translated_db": round(float(result.psnr_translated.mean()), 1),
                "encoded_db": round(float(result.psnr_encoded.mean()), 1),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    options.out.write_text(json.dumps({"images": len(dataset), "pairs": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
