"""Pre-train tiny-sana, the base of the embedded world, and write it with its card.

    python experiments/assets/pretrain_tiny_sana.py --minutes 85 --threads 2
    python experiments/assets/pretrain_tiny_sana.py --steps 8000 --learning-rate 8e-4 --from-weights DIR

Recipe: latents of dc-f16c32 in nine views of every image (itself, mirrored, two shifted, scaled and mirrored at
random, five more with their hues turned), MiniLM tokens, logit-normal sigmas, 10% null prompts, bf16 autocast, AdamW
with warm-up and a cosine to zero over the given time or steps, EMA .999. A view with turned hues comes with the
colours measured on it, so that a title does not tell the colour; half of all captions are plain titles, and some give
colours and style without a title. Checkpoints every 1,000 steps under --work; the same command goes on from the last
one.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from sanakit.assembly import LatentDiffusion
from sanakit.core.dit import new_core, parameters_by_group
from sanakit.data import ImageDataset, load_images
from sanakit.data.cache import to_images
from sanakit.data.dataset import LatentDataset, build_dataset, row_noise
from sanakit.data.embedded_captions import COLOURS, ENRICHED, PLAIN, enriched_caption, measure_colours, rotate_hue
from sanakit.data.order import batch_indices
from sanakit.evaluation.held_out import HeldOut, held_out
from sanakit.flow import sample_sigmas
from sanakit.hashing import hash_record
from sanakit.loading import load_text_encoder, load_vae
from sanakit.text_encoders import PromptEmbeds, TextEncoder
from sanakit.training.batches import Batch
from sanakit.training.checkpoint import latest, load_checkpoint, save_checkpoint
from sanakit.training.loop import TrainOptions, fit, new_state
from sanakit.vaes import VAE

OUT = Path("sanakit/assets/cores/tiny-sana")
SIZE = 96
FIXED_VIEWS, RANDOM_VIEWS, TURNED_VIEWS = 2, 2, 5  # itself and mirrored; shifted; shifted with turned hues
TURN = (40, 320)  # degrees
TURNED_SHARE = 1 / 3  # of the batch
CAPTION_SHARES = {
    False: (0.75, 0.2, 0.05),
    True: (0.0, 0.85, 0.15),
}  # plain, enriched, untitled; of turned views or not
EVALUATE_EVERY = 1000
COLUMNS = [
    "step", "running train loss", "held-out loss", "null-prompt loss", "gain", "gain at .7", "gain at .9", "plain gain",
    "enriched gain", "plain gain at .9", "enriched gain at .9", "gain over shuffled",
]  # fmt: skip
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


@dataclass(frozen=True)
class Views:
    """latents: (N, M, C, h, w). captions: embeddings of all texts. rows: (N, M, 3) of a view's plain, enriched and
    untitled caption in `captions`."""

    latents: Tensor
    captions: PromptEmbeds
    rows: Tensor


def random_view(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(S, S, 3) uint8 -> the same, scaled by .8 to 1.1, shifted by up to 8 pixels on white, mirrored half the time."""
    side = round(SIZE * generator.uniform(0.8, 1.1))
    left, top = ((SIZE - side) // 2 + int(generator.integers(-8, 9)) for _ in range(2))
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), (left, top))
    view = np.asarray(canvas)
    return view[:, ::-1] if generator.random() < 0.5 else view


def turned_captions(plain: str, style: str, colours: list[str]) -> list[str]:
    """Plain, enriched and untitled caption of a view with these colours; a title of colour words alone is left out."""
    title = plain if set(plain.split()) - set(COLOURS) else ""
    return [plain, enriched_caption(title, colours, style), enriched_caption("", colours, style)]


def encode_views(vae: VAE, dataset: ImageDataset, work: Path, seed: int) -> tuple[Tensor, list[list[list[str]]]]:
    """Normalised latents (N, RANDOM_VIEWS + TURNED_VIEWS, C, h, w) and the captions of every image and view, kept in
    `work` for a run that goes on."""
    latents_file = work / f"views-{vae.fingerprint()[:12]}-{seed}.safetensors"
    colours_file = latents_file.with_suffix(".json")
    if not colours_file.is_file():
        generator, views, colours = np.random.default_rng(seed), [], []
        pixels = dataset.pixels(SIZE)
        for view in range(RANDOM_VIEWS + TURNED_VIEWS):
            turned = [
                rotate_hue(image, generator.uniform(*TURN)) if view >= RANDOM_VIEWS else image for image in pixels
            ]
            colours.append([measure_colours(image) for image in turned])
            chunks = [turned[i : i + 32] for i in range(0, len(turned), 32)]
            images = [to_images(np.stack([random_view(p, generator) for p in chunk])) for chunk in chunks]
            views.append(torch.cat([vae.encode(x) for x in images]))
            print(f"view {view + 1} of {RANDOM_VIEWS + TURNED_VIEWS} encoded", flush=True)
        save_file({"latents": torch.stack(views, 1).contiguous()}, latents_file)
        colours_file.write_text(json.dumps(colours))
    by_view = json.loads(colours_file.read_text())
    captions = [
        [turned_captions(texts[PLAIN], texts[ENRICHED].rsplit(", ", 1)[-1], colours) for colours in views]
        for texts, views in zip(dataset.captions, zip(*by_view, strict=True), strict=True)
    ]
    return load_file(latents_file)["latents"], captions


def gather_views(
    encoder: TextEncoder, fixed: Tensor, more: Tensor, captions: list[list[list[str]]], work: Path
) -> Views:
    """All views with their captions; every text is embedded once, in fp16, and kept in `work`. The fixed views have the
    first view's captions."""
    texts: dict[str, int] = {}
    rows = torch.tensor(
        [
            [[texts.setdefault(text, len(texts)) for text in view] for view in [image[0]] * FIXED_VIEWS + image]
            for image in captions
        ]
    )
    unique = list(texts)
    file = work / f"captions-{hash_record([encoder.fingerprint(), unique])[:12]}.safetensors"
    if not file.is_file():
        parts = [encoder.encode(unique[i : i + 64]) for i in range(0, len(unique), 64)]
        embeds = torch.cat([part.embeds.half() for part in parts])
        save_file({"embeds": embeds, "mask": torch.cat([part.mask for part in parts])}, file)
    kept = load_file(file)
    print(f"{len(unique)} captions embedded", flush=True)
    spread = more.std() / fixed.std()
    if not 0.8 < spread < 1.25:
        raise SystemExit(f"latents of the further views are {spread:.2f} times as wide as the images' own")
    return Views(torch.cat([fixed, more], 1), PromptEmbeds(kept["embeds"], kept["mask"]), rows)


def draw_view(system: LatentDiffusion, views: Views, options: TrainOptions, step: int, rows: slice) -> Batch:
    """The batch of a step, from (seed, step) alone: views, captions of their kind, dropout, sigmas and noise."""
    indices = batch_indices(len(views.latents), options.batch_size, step, options.seed)
    count, generator = len(indices), torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    sigmas = sample_sigmas(count, shift=float(system.flow_shift or 1.0), generator=generator)
    turned = torch.rand(count, generator=generator) < TURNED_SHARE
    known = FIXED_VIEWS + RANDOM_VIEWS
    view = torch.where(
        turned,
        known + torch.randint(TURNED_VIEWS, (count,), generator=generator),
        torch.randint(known, (count,), generator=generator),
    )
    shares = torch.tensor([CAPTION_SHARES[bool(t)] for t in turned])
    kind = torch.multinomial(shares, 1, generator=generator)[:, 0]
    drop = torch.rand(count, generator=generator) < options.prompt_dropout
    seeds = torch.randint(1 << 62, (count,), generator=generator)
    latents = views.latents[indices, view][rows]
    noise = row_noise(latents, generator, seeds[rows])
    texts = views.rows[indices, view, kind][rows]
    prompt = PromptEmbeds(views.captions.embeds[texts].float(), views.captions.mask[texts])
    return Batch(latents, noise, sigmas[rows], system.drop_prompts(prompt, drop[rows]), indices[rows])


def with_captions(data: LatentDataset, kind: int) -> LatentDataset:
    """The same images, each with one caption alone."""
    return replace(data, first=data.first + kind, count=torch.ones_like(data.count))


def measure(system: LatentDiffusion, test: LatentDataset, count: int) -> dict[str, float]:
    """Held-out loss and prompt gains, half over plain and half over enriched captions, on the same images."""
    plain, enriched = (held_out(system, with_captions(test, kind), count=count) for kind in (PLAIN, ENRICHED))
    null = held_out(system, test, count=count, prompt="null")
    shuffled = held_out(system, with_captions(test, ENRICHED), count=count, prompt="shuffled")

    def gain(held: HeldOut, sigma: float | None = None) -> float:
        better = (null.losses - held.losses).mean(1)
        return float(better.mean() if sigma is None else better[held.sigmas.index(sigma)])

    return {
        "held_out_loss": (plain.loss + enriched.loss) / 2,
        "null_prompt_loss": null.loss,
        "gain": (gain(plain) + gain(enriched)) / 2,
        "gain_at_0.7": (gain(plain, 0.7) + gain(enriched, 0.7)) / 2,
        "gain_at_0.9": (gain(plain, 0.9) + gain(enriched, 0.9)) / 2,
        "plain_gain": gain(plain),
        "enriched_gain": gain(enriched),
        "plain_gain_at_0.9": gain(plain, 0.9),
        "enriched_gain_at_0.9": gain(enriched, 0.9),
        "gain_over_shuffled": shuffled.loss - enriched.loss,
    }


def start_of(folder: Path) -> dict[str, Any]:
    """How the weights that training started from were made, by their card."""
    card = json.loads((folder / "card.json").read_text())
    return {key: card[key] for key in ("recipe", "seed", "steps", "data")} | {
        "held_out_loss": card["quality"]["held_out_loss"]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", default="dc-f16c32")
    parser.add_argument("--minutes", type=float, default=85)
    parser.add_argument("--steps", type=int, help="of the whole schedule, instead of --minutes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--from-weights", type=Path, help="folder of a core to go on from, with a fresh optimiser")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain-tiny-sana"))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)

    dataset = load_images("embedded")
    vae, encoder = load_vae(args.vae), load_text_encoder("minilm")
    train = build_dataset(vae, encoder, dataset.split(False), SIZE, mirror=True)
    test = build_dataset(vae, encoder, dataset.split(True), SIZE, mirror=False)
    more, captions = encode_views(vae, dataset.split(False), args.work, args.seed)
    views = gather_views(encoder, train.latents, more, captions, args.work)

    channels = vae.spec.latent_channels
    core = new_core(CONFIG | {"in_channels": channels, "out_channels": channels}, seed=args.seed)
    if args.from_weights:
        weights = load_file(args.from_weights / "diffusion_pytorch_model.safetensors")
        core.load_state_dict({name: value.float() for name, value in weights.items()})
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

    def progress() -> float:
        return state.step / args.steps if args.steps else (time.monotonic() - start) / (60 * args.minutes)

    def rate(step: int, options: TrainOptions) -> float:
        done = step / args.steps if args.steps else progress()
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1, done))
        return options.learning_rate * min(1, (step + 1) / options.warmup) * cosine

    def after_step(step: int, loss: float, batch, predicted) -> None:
        nonlocal running
        running = loss if running is None else running + 0.01 * (loss - running)

    def evaluate() -> None:
        trained = {k: v.clone() for k, v in core.state_dict().items()}
        core.load_state_dict(state.ema)
        values = measure(system, test, count=256)
        core.load_state_dict(trained)
        curve.append([state.step, round(running or 0.0, 4), *(round(value, 4) for value in values.values())])
        print(f"{progress():.0%} " + " ".join(map(str, curve[-1])), flush=True)

    def keep() -> None:
        for old in args.work.glob("ema-*.safetensors"):
            old.unlink()
        save_file({k: v.contiguous() for k, v in state.ema.items()}, args.work / f"ema-{state.step}.safetensors")
        record.write_text(
            json.dumps({state.step: {"spent": time.monotonic() - start, "curve": curve, "train": running}})
        )
        save_checkpoint(args.work, core, state, facts)

    if not curve:
        evaluate()
    draw = partial(draw_view, system, views, options)
    while progress() < 1:
        fit(system, train, options, state, until=state.step + 20, after_step=after_step, rate=rate, draw=draw)
        if state.step % EVALUATE_EVERY == 0:
            evaluate()
            keep()
    core.load_state_dict(state.ema)
    quality = measure(system, test, count=len(test)) | {"images": len(test)}
    args.out.mkdir(parents=True, exist_ok=True)
    core.half().save_pretrained(args.out)
    length = f"--steps {args.steps}" if args.steps else f"--minutes {args.minutes:g}"
    card = {
        "recipe": f"experiments/assets/pretrain_tiny_sana.py --vae {args.vae} {length} --threads {args.threads} "
        f"--precision {args.precision} --learning-rate {args.learning_rate:g}"
        + (" --from-weights (those of `started_from`)" if args.from_weights else ""),
        **({"started_from": start_of(args.from_weights)} if args.from_weights else {}),
        "seed": args.seed,
        "steps": state.step,
        "batch_size": options.batch_size,
        "vae": args.vae,
        "text_encoder": "minilm",
        "image_size": SIZE,
        "flow_shift": system.flow_shift,
        "data": {
            "source": f"embedded (training split, {views.latents.shape[1]} views an image, "
            f"{TURNED_VIEWS} with turned hues)",
            "fingerprint": dataset.fingerprint,
        },
        "curve": {"columns": COLUMNS, "rows": curve},
        "quality": {k: round(v, 4) for k, v in quality.items()},
        "parameters": sum(p.numel() for p in core.parameters()),
        "licence": "CC BY-SA 4.0 (trained on OpenMoji)",
    }
    (args.out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card["quality"]))


if __name__ == "__main__":
    main()
