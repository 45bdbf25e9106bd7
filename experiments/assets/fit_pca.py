"""Fit the PCA patch autoencoders of the embedded world and print their held-out PSNR.

python experiments/assets/fit_pca.py
"""

import json

import torch

from sanakit.data import load_images
from sanakit.vaes.pca import ASSETS, PCAVAE

GEOMETRIES = ((8, 4), (16, 16), (16, 32), (32, 64))


def main() -> None:
    data = load_images("embedded")
    splits = [torch.from_numpy(data.split(side).pixels(96)).permute(0, 3, 1, 2) for side in (False, True)]
    for ratio, channels in GEOMETRIES:
        vae = PCAVAE.fit(splits[0], ratio, channels)
        images = splits[1].float().div(127.5).sub(1)
        error = (vae.decode_raw(vae.encode_raw(images)) - images).square().mean((1, 2, 3))
        psnr = 10 * torch.log10(4 / error).mean().item()
        folder = ASSETS / f"pca-{vae.spec.label}"
        vae.save(folder)
        card = {
            "recipe": "experiments/assets/fit_pca.py",
            "seed": None,
            "data": {"source": "embedded (train split)", "fingerprint": data.fingerprint},
            "quality": {"held_out_psnr": round(psnr, 3), "images": len(images)},
            "parameters": vae.model.components.numel() + vae.model.mean.numel(),
            "licence": "CC BY-SA 4.0 (fitted on OpenMoji)",
        }
        (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
        print(f"pca-{vae.spec.label}: held-out PSNR {psnr:.2f}")


if __name__ == "__main__":
    main()
