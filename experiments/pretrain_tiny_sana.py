"""Pre-train tiny-sana, the base of the embedded world, and write it with its card and a sample grid.

    python experiments/pretrain_tiny_sana.py --minutes 50 --threads 1

Recipe: latents of pca-f16c32 (mirrored pictures too), MiniLM tokens, logit-normal sigmas, 10% null prompts, AdamW
with warm-up and a cosine to zero over the given time, EMA .999. The average so far is written every 500 steps.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch

from sanakit.assembly import LatentDiffusion
from sanakit.core.dit import new_core, parameters_by_group
from sanakit.data import load_pictures
from sanakit.data.cache import build_dataset
from sanakit.evaluate import held_out
from sanakit.text_encoders import load_text_encoder
from sanakit.train import TrainOptions, fit, new_state
from sanakit.vaes import load_vae

FOLDER = Path("sanakit/assets/cores/tiny-sana")
CONFIG = {
    "in_channels": 32,
    "out_channels": 32,
    "num_attention_heads": 5,
    "attention_head_dim": 32,
    "num_layers": 5,
    "num_cross_attention_heads": 5,
    "cross_attention_head_dim": 32,
    "cross_attention_dim": 160,
    "caption_channels": 384,
    "mlp_ratio": 2.5,
    "sample_size": 6,
    "patch_size": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain-tiny-sana"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)

    pictures = load_pictures("embedded")
    vae, encoder = load_vae("pca-f16c32"), load_text_encoder("minilm")
    train = build_dataset(vae, encoder, pictures.split(False), 96, mirror=True)
    test = build_dataset(vae, encoder, pictures.split(True), 96, mirror=False)
    system = LatentDiffusion(vae=vae, text_encoder=encoder, core=new_core(CONFIG, seed=args.seed), image_size=96)
    system.core.to(memory_format=torch.channels_last)  # 1.3 times the steps on a CPU
    options = TrainOptions(
        max_steps=10**9, batch_size=32, learning_rate=args.learning_rate, warmup=200, ema_decay=0.999, seed=args.seed
    )
    groups = parameters_by_group(system.core)
    state = new_state(system.core, [{"params": p} for p in groups.values()], options)

    start, curve, running = time.monotonic(), [], None
    progress = lambda: (time.monotonic() - start) / (60 * args.minutes)

    def rate(step: int, options: TrainOptions) -> float:
        return (
            options.learning_rate
            * min(1, (step + 1) / options.warmup)
            * (0.5 + 0.5 * math.cos(math.pi * min(1, progress())))
        )

    def after_step(step: int, loss: float, batch, predicted) -> None:
        nonlocal running
        running = loss if running is None else running + 0.01 * (loss - running)
        if step % 500 == 0:
            trained = {k: v.clone() for k, v in system.core.state_dict().items()}
            system.core.load_state_dict(state.ema)
            own = held_out(system, test).loss
            gain = held_out(system, test, prompt="null").loss - own
            shuffled = held_out(system, test, prompt="shuffled").loss - own
            system.core.save_pretrained(args.work / "core")
            system.core.load_state_dict(trained)
            curve.append([step, round(running, 4), round(own, 4), round(gain, 4), round(shuffled, 4)])
            (args.work / "curve.json").write_text(json.dumps(curve))
            print(
                f"{progress():.0%} step {step} train {running:.4f} held-out {own:.4f} gain {gain:.4f} over shuffled {shuffled:.4f}",
                flush=True,
            )

    while progress() < 1:
        fit(system, train, options, state, until=state.step + 20, after_step=after_step, rate=rate)
    system.core.load_state_dict(state.ema)
    own = held_out(system, test, count=len(test)).loss
    quality = {
        "held_out_loss": own,
        "train_loss": held_out(system, train, count=len(test)).loss,
        "null_prompt_loss": held_out(system, test, count=len(test), prompt="null").loss,
        "shuffled_prompt_loss": held_out(system, test, count=len(test), prompt="shuffled").loss,
        "pictures": len(test),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    system.core.half().save_pretrained(FOLDER)
    card = {
        "recipe": f"experiments/pretrain_tiny_sana.py --minutes {args.minutes:g} --threads {args.threads} --learning-rate {args.learning_rate:g}",
        "seed": args.seed,
        "steps": state.step,
        "batch_size": options.batch_size,
        "vae": "pca-f16c32",
        "text_encoder": "minilm",
        "image_size": 96,
        "flow_shift": system.flow_shift,
        "data": {"source": "embedded (train half, mirrored)", "fingerprint": pictures.fingerprint},
        "curve": {
            "columns": ["step", "train loss", "held-out loss", "conditional gain", "gain over shuffled"],
            "rows": curve,
        },
        "quality": {k: round(v, 4) for k, v in quality.items()},
        "parameters": sum(p.numel() for p in system.core.parameters()),
        "licence": "CC BY-SA 4.0 (trained on OpenMoji)",
    }
    (FOLDER / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card["quality"]))


if __name__ == "__main__":
    main()
