"""Pre-train tiny-sana, the base of the embedded world, and write it with its card.

    python experiments/assets/pretrain_tiny_sana.py --minutes 85 --threads 2

Recipe: latents of dc-f16c32 in ten views of every image (itself, mirrored, eight shifted, scaled and mirrored at
random), MiniLM tokens, logit-normal sigmas, 10% null prompts, bf16 autocast, AdamW with warm-up and a cosine to zero
over the given time, EMA .999. Checkpoints every 500 steps under --work; the same command goes on from the last one.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sanakit.assembly import LatentDiffusion
from sanakit.core.dit import new_core, parameters_by_group
from sanakit.data import load_images
from sanakit.data.cache import to_images
from sanakit.data.dataset import LatentDataset, build_dataset
from sanakit.evaluation.held_out import held_out
from sanakit.loading import load_text_encoder, load_vae
from sanakit.training.checkpoint import latest, load_checkpoint, save_checkpoint
from sanakit.training.loop import TrainOptions, fit, new_state
from sanakit.vaes import VAE

FOLDER = Path("sanakit/assets/cores/tiny-sana")
SIZE = 96
RANDOM_VIEWS = 8
CONFIG = {
    "num_attention_heads": 8,
    "attention_head_dim": 32,
    "num_layers": 5,
    "num_cross_attention_heads": 8,
    "cross_attention_head_dim": 32,
    "cross_attention_dim": 256,
    "caption_channels": 384,
    "mlp_ratio": 2.5,
    "sample_size": 6,
    "patch_size": 1,
}


def random_view(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(S, S, 3) uint8 -> the same, scaled by .8 to 1.1, shifted by up to 8 pixels on white, mirrored half the time."""
    side = round(SIZE * generator.uniform(0.8, 1.1))
    left, top = ((SIZE - side) // 2 + int(generator.integers(-8, 9)) for _ in range(2))
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), (left, top))
    view = np.asarray(canvas)
    return view[:, ::-1] if generator.random() < 0.5 else view


def add_random_views(vae: VAE, data: LatentDataset, pixels: np.ndarray, file: Path, seed: int) -> None:
    """Append RANDOM_VIEWS views to `data.latents`, kept in `file` for a run that goes on."""
    if not file.is_file():
        generator = np.random.default_rng(seed)
        views = []
        for view in range(RANDOM_VIEWS):
            latents = [
                vae.encode(to_images(np.stack([random_view(p, generator) for p in chunk])))
                for chunk in np.array_split(pixels, len(pixels) // 32)
            ]
            views.append(torch.cat(latents))
            print(f"view {view + 1} of {RANDOM_VIEWS} encoded", flush=True)
        save_file({"latents": torch.stack(views, 1).contiguous()}, file)
    data.latents = torch.cat([data.latents, load_file(file)["latents"]], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", default="dc-f16c32")
    parser.add_argument("--minutes", type=float, default=85)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain-tiny-sana"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)

    dataset = load_images("embedded")
    vae, encoder = load_vae(args.vae), load_text_encoder("minilm")
    train = build_dataset(vae, encoder, dataset.split(False), SIZE, mirror=True)
    test = build_dataset(vae, encoder, dataset.split(True), SIZE, mirror=False)
    views = args.work / f"views-{vae.fingerprint()[:12]}.safetensors"
    add_random_views(vae, train, dataset.split(False).pixels(SIZE), views, args.seed)

    channels = vae.spec.latent_channels
    core = new_core(CONFIG | {"in_channels": channels, "out_channels": channels}, seed=args.seed)
    core.to(memory_format=torch.channels_last)
    system = LatentDiffusion(vae=vae, text_encoder=encoder, core=core, image_size=SIZE)
    options = TrainOptions(
        max_steps=10**9,
        batch_size=32,
        learning_rate=args.learning_rate,
        warmup=200,
        ema_decay=0.999,
        precision=args.precision,
        seed=args.seed,
    )
    state = new_state(core, [{"params": p} for p in parameters_by_group(core).values()], options)
    facts = {"vae": vae.fingerprint(), "learning_rate": args.learning_rate, "seed": args.seed}
    record = args.work / "progress.json"
    spent, curve, running = 0.0, [], None
    if last := latest(args.work):
        load_checkpoint(last, core, state, facts)
        state.ema = load_file(args.work / f"ema-{state.step}.safetensors")
        spent, curve, running = (
            json.loads(record.read_text())[str(state.step)][k] for k in ("spent", "curve", "train")
        )
    start = time.monotonic() - spent

    def progress():
        return (time.monotonic() - start) / (60 * args.minutes)

    def rate(step: int, options: TrainOptions) -> float:
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1, progress()))
        return options.learning_rate * min(1, (step + 1) / options.warmup) * cosine

    def after_step(step: int, loss: float, batch, predicted) -> None:
        nonlocal running
        running = loss if running is None else running + 0.01 * (loss - running)

    def evaluate() -> None:
        trained = {k: v.clone() for k, v in core.state_dict().items()}
        core.load_state_dict(state.ema)
        own_loss = held_out(system, test).loss
        known = held_out(system, train).loss
        gain = held_out(system, test, prompt="null").loss - own_loss
        shuffled = held_out(system, test, prompt="shuffled").loss - own_loss
        core.load_state_dict(trained)
        curve.append([state.step, *(round(value, 4) for value in (running, known, own_loss, gain, shuffled))])
        for old in args.work.glob("ema-*.safetensors"):
            old.unlink()
        save_file({k: v.contiguous() for k, v in state.ema.items()}, args.work / f"ema-{state.step}.safetensors")
        record.write_text(
            json.dumps({state.step: {"spent": time.monotonic() - start, "curve": curve, "train": running}})
        )
        save_checkpoint(args.work, core, state, facts)
        print(f"{progress():.0%} " + " ".join(map(str, curve[-1])), flush=True)

    while progress() < 1:
        fit(system, train, options, state, until=state.step + 20, after_step=after_step, rate=rate)
        if state.step % 500 == 0:
            evaluate()
    core.load_state_dict(state.ema)
    own_loss = held_out(system, test, count=len(test)).loss
    quality = {
        "held_out_loss": own_loss,
        "train_loss": held_out(system, train, count=len(test)).loss,
        "null_prompt_loss": held_out(system, test, count=len(test), prompt="null").loss,
        "shuffled_prompt_loss": held_out(system, test, count=len(test), prompt="shuffled").loss,
        "images": len(test),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    core.half().save_pretrained(FOLDER)
    card = {
        "recipe": f"experiments/assets/pretrain_tiny_sana.py --vae {args.vae} --minutes {args.minutes:g} "
        f"--threads {args.threads} --precision {args.precision} --learning-rate {args.learning_rate:g}",
        "seed": args.seed,
        "steps": state.step,
        "batch_size": options.batch_size,
        "vae": args.vae,
        "text_encoder": "minilm",
        "image_size": SIZE,
        "flow_shift": system.flow_shift,
        "data": {"source": "embedded (train split, ten views per image)", "fingerprint": dataset.fingerprint},
        "curve": {
            "columns": [
                "step",
                "running train loss",
                "loss on training images",
                "held-out loss",
                "conditional gain",
                "gain over shuffled",
            ],
            "rows": curve,
        },
        "quality": {k: round(v, 4) for k, v in quality.items()},
        "parameters": sum(p.numel() for p in core.parameters()),
        "licence": "CC BY-SA 4.0 (trained on OpenMoji)",
    }
    (FOLDER / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card["quality"]))


if __name__ == "__main__":
    main()
