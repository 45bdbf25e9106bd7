"""Train one VAE of the embedded world and write it with its card.

    python experiments/assets/train_vae.py dc-f16c32 --minutes 15
    python experiments/assets/train_vae.py dc-f16c32 --minutes 15 --more     # starts at the committed weights

Images: the training split of the embedded world plus crops of scikit-image's and scikit-learn's photographs.
Loss: mean squared error of pixels (and KL 1e-6 where the class has a posterior), AdamW with one-cycle learning rate
over a fixed time; mirrored at random. The last weights are an exponential moving average. Written in fp16.
"""

import argparse
import json
import time
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image

from sanakit.data import load_images

ASSETS = Path("sanakit/assets/vaes")
CROP = 64


def dc(ratio_levels: int, latent_channels: int, channels: tuple[int, ...], decoder_layers: tuple[int, ...]):
    levels = ratio_levels + 1
    return diffusers.AutoencoderDC(
        latent_channels=latent_channels,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=(0,) + (1,) * (levels - 1),
        decoder_layers_per_block=decoder_layers,
        encoder_qkv_multiscales=((),) * levels,
        decoder_qkv_multiscales=((),) * levels,
    )


RECIPES = {
    "dc-f16c32": lambda: dc(4, 32, (32, 32, 64, 128, 128), (0, 1, 2, 2, 2)),
    "dc-f16c16": lambda: dc(4, 16, (32, 32, 64, 128, 128), (0, 1, 2, 2, 2)),
    "dc-f32c64": lambda: dc(5, 64, (32, 32, 64, 128, 128, 128), (0, 1, 2, 2, 2, 2)),
    "kl-f8c4": lambda: diffusers.AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
    ),
}


def photographs() -> list[np.ndarray]:
    import skimage.data
    import sklearn.datasets

    names = ("astronaut", "coffee", "chelsea", "rocket")
    return [getattr(skimage.data, name)() for name in names] + list(sklearn.datasets.load_sample_images().images)


def batches(pixels: torch.Tensor, photos: list[np.ndarray], batch_size: int, generator: np.random.Generator):
    """Random crops in [-1, 1], a tenth of them of photographs at a random scale."""
    while True:
        rows = []
        for index in generator.integers(len(pixels), size=batch_size):
            if generator.random() < 0.1:
                photo = photos[generator.integers(len(photos))]
                side = int(generator.integers(CROP, min(photo.shape[:2])))
                top, left = (int(generator.integers(n - side + 1)) for n in photo.shape[:2])
                crop = Image.fromarray(photo[top : top + side, left : left + side]).resize((CROP, CROP))
                row = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
            else:
                top, left = (int(generator.integers(n - CROP + 1)) for n in pixels.shape[2:])
                row = pixels[index, :, top : top + CROP, left : left + CROP]
            rows.append(row.flip(-1) if generator.random() < 0.5 else row)
        yield torch.stack(rows).float().div(127.5).sub(1)


def reconstruct(model, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstruction and the KL term (zero without a posterior)."""
    if isinstance(model, diffusers.AutoencoderKL):
        posterior = model.encode(images).latent_dist
        return model.decode(posterior.sample()).sample, posterior.kl().mean()
    encoded = model.encode(images)
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    # a weak pull to unit scale keeps raw latents comparable without fixing their shape
    return model.decode(latents).sample, latents.square().mean() * 10


def psnr(model, images: torch.Tensor) -> float:
    values = []
    with torch.no_grad():
        for chunk in images.split(32):
            x = chunk.float().div(127.5).sub(1)
            latents = model.encode(x)
            latents = latents.latent_dist.mode() if hasattr(latents, "latent_dist") else next(iter(latents.values()))
            y = model.decode(latents).sample.clamp(-1, 1)
            values.append(10 * torch.log10(4 / (y - x).square().mean((1, 2, 3))))
    return torch.cat(values).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--more", action="store_true", help="start at the committed weights; the card keeps both recipes"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    data = load_images("embedded")

    def to_tensor(dataset):
        return torch.from_numpy(dataset.pixels(96)).permute(0, 3, 1, 2).contiguous()

    train, held_out = to_tensor(data.split(False)), to_tensor(data.split(True))
    model, before = RECIPES[args.name](), None
    if args.more:
        before = json.loads((ASSETS / args.name / "card.json").read_text())
        model = type(model).from_pretrained(ASSETS / args.name).float()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=1e-3, fused=True)
    stream = batches(train, photographs(), args.batch_size, np.random.default_rng(args.seed))

    start, step, curve, mean_loss = time.monotonic(), 0, [], 0.0
    while (progress := (time.monotonic() - start) / (60 * args.minutes)) < 1:
        warm = min(1.0, step / 100)
        cosine = 0.5 + 0.5 * float(np.cos(np.pi * progress))
        optimizer.param_groups[0]["lr"] = args.learning_rate * warm * max(cosine, 0.01)
        images = next(stream)
        output, prior = reconstruct(model, images)
        loss = (output - images).square().mean() + 1e-6 * prior
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        mean_loss += 0.02 * (loss.item() - mean_loss) if step else loss.item()
        step += 1
        if step % 200 == 0:
            curve.append([step, round(psnr(average.module, held_out[:128]), 3)])
            print(f"step {step}  loss {mean_loss:.4f}  held-out PSNR {curve[-1][1]:.2f}  {progress:.0%}", flush=True)

    model = average.module.half()
    raw = []
    with torch.no_grad():
        model.float()
        for chunk in train[:1024].split(64):
            encoded = model.encode(chunk.float().div(127.5).sub(1))
            raw.append(encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else next(iter(encoded.values())))
    model.register_to_config(scaling_factor=round(1 / torch.cat(raw).std().item(), 5))
    folder = ASSETS / args.name
    quality = psnr(model, held_out)
    model.half().save_pretrained(folder)
    card = {
        "recipe": f"experiments/assets/train_vae.py {args.name} --minutes {args.minutes:g} "
        f"--batch-size {args.batch_size} --learning-rate {args.learning_rate:g} --threads {args.threads}",
        "started_at": before and {key: before[key] for key in ("recipe", "seed", "steps", "quality")},
        "seed": args.seed,
        "steps": step,
        "data": {"source": "embedded (train split) and photographs", "fingerprint": data.fingerprint},
        "curve": {"columns": ["step", "held-out PSNR of 128 images"], "rows": curve},
        "quality": {"held_out_psnr": round(quality, 3), "images": len(held_out)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "licence": "CC BY-SA 4.0 (trained on OpenMoji)",
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(f"{args.name}: {step} steps, held-out PSNR {quality:.2f}, {card['parameters'] / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
