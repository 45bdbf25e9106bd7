"""The small world of the decision study: its bases, and reference runs in other latents.

    python experiments/studies/study_world.py base dc-minilm      # VAE dc-f16c32, text encoder MiniLM
    python experiments/studies/study_world.py base pca-wordllama  # VAE pca-f16c32, text encoder WordLlama
    python experiments/studies/study_world.py base tiny-sana      # the embedded base: nothing is trained
    python experiments/studies/study_world.py reference dc-f16c16 # the recipe of dc-minilm in another VAE's latents

Images at 64 px, 16 tokens, a core of 1.3 M parameters: small enough that a swap is run to its end under every
strategy in minutes, trained by the recipe of tiny-sana until its held-out loss is flat. Bases are kept in
experiments/assets/study_bases, as another processor rounds otherwise and trains another one from the same seed;
references lie under runs/study. `base` also writes the base's fingerprint and the data's into
experiments/results/study_bases.json: a run of the study on another base is refused. Candidates: study_candidates.py.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from study_rows import write_base

from sanakit.assembly import LatentDiffusion
from sanakit.config import make_config
from sanakit.core.dit import new_core, parameters_by_group
from sanakit.data import load_images
from sanakit.data.dataset import build_dataset
from sanakit.evaluation.held_out import averaged, held_out
from sanakit.hashing import hash_record
from sanakit.loading import load_base, load_text_encoder, load_vae
from sanakit.run import RunFolder
from sanakit.swap.context import Swap
from sanakit.training.loop import TrainOptions, fit, new_state

WORLD = Path("runs/study")
KEPT = Path("experiments/assets/study_bases")
SIZE = 64
TOKENS = 16
BASES = {"dc-minilm": ("dc-f16c32", "minilm"), "pca-wordllama": ("pca-f16c32", "wordllama")}
CONFIG = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "num_layers": 4,
    "num_cross_attention_heads": 4,
    "cross_attention_head_dim": 32,
    "cross_attention_dim": 128,
    "mlp_ratio": 2.5,
}
EMBEDDED = ("tiny-sana",)
STEPS = 8000


def train_core(vae_name: str, encoder_name: str, folder: Path, *, steps: int, rate: float, seed: int) -> dict[str, Any]:
    """Train a core from scratch with cosine decay and a weight average; writes it with its card into `folder`."""
    vae, encoder, dataset = load_vae(vae_name), load_text_encoder(encoder_name), load_images("embedded")
    train = build_dataset(vae, encoder, dataset.split(False), SIZE, mirror=True)
    test = build_dataset(vae, encoder, dataset.split(True), SIZE, mirror=False)
    side = SIZE // vae.spec.spatial_compression_ratio
    patch = max(1, side * side // TOKENS) ** 0.5
    channels = vae.spec.latent_channels
    config = CONFIG | {
        "in_channels": channels,
        "out_channels": channels,
        "caption_channels": encoder.spec.embed_dim,
        "patch_size": int(patch),
        "sample_size": side,
    }
    core = new_core(config, seed=seed)
    system = LatentDiffusion(vae=vae, text_encoder=encoder, core=core, image_size=SIZE)
    options = TrainOptions(
        max_steps=steps, batch_size=32, learning_rate=rate, warmup=200, ema_decay=0.998, seed=seed, weight_decay=0.01
    )
    state = new_state(core, [{"params": p} for p in parameters_by_group(core).values()], options)
    rows, start = [], time.monotonic()
    for until in sorted(
        {*(round(125 * 2**k) for k in range(0, 12) if 125 * 2**k < steps), *range(1000, steps + 1, 1000), steps}
    ):
        fit(system, train, options, state, until=until)
        with averaged(core, state.ema):
            own_loss, known = (
                held_out(system, test, count=len(test)).loss,
                held_out(system, train, count=len(test)).loss,
            )
        rows.append([until, round(known, 4), round(own_loss, 4)])
        print(vae_name, encoder_name, rows[-1], f"{time.monotonic() - start:.0f} s", flush=True)
    assert state.ema is not None
    core.load_state_dict({name: value.bfloat16() for name, value in state.ema.items()})  # as it is kept
    loss = {p: held_out(system, test, count=len(test), prompt=p).loss for p in ("own", "null", "shuffled")}
    copy.deepcopy(core).to(torch.bfloat16).save_pretrained(folder)
    card = {
        "recipe": (
            f"experiments/studies/study_world.py, {steps} steps of 32, learning rate {rate:g}, cosine, average .998"
        ),
        "seed": seed,
        "vae": vae_name,
        "text_encoder": encoder_name,
        "image_size": SIZE,
        "embedded": True,  # the race takes the rates of embedded cores
        "flow_shift": system.flow_shift,
        "curve": {"columns": ["step", "loss on training images", "held-out loss"], "rows": rows},
        "quality": {
            "held_out_loss": loss["own"],
            "null_prompt_loss": loss["null"],
            "shuffled_prompt_loss": loss["shuffled"],
        },
        "parameters": sum(p.numel() for p in core.parameters()),
        "data": {"source": "embedded, train split, mirrored", "fingerprint": dataset.fingerprint},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card["quality"]), flush=True)
    return card


def base_name(name: str) -> str:
    """As configurations name it: that of an embedded base, or the folder in which it is kept."""
    return name if name in EMBEDDED else f"path:{KEPT / name}"


def note_base(name: str) -> dict[str, Any]:
    """Fingerprint and quality of a base as it is now, into study_bases.json: the study refuses runs on any other."""
    base = load_base(base_name(name))
    size = base.card["image_size"]
    values = {"base": base.name, "vae": {"name": base.card["vae"]}, "data": {"image_size": size}}
    config = make_config(values)
    swap = Swap(config=config, run=RunFolder(Path(), config))
    facts = {
        "fingerprint": hash_record(swap.base_fingerprint),
        "data": swap.images.fingerprint,
        "recipe": base.card["recipe"],
        "quality": base.card["quality"],
    }
    write_base(name, facts)
    print(f"{name}: {facts['fingerprint'][:12]}, {json.dumps(facts['quality'])}", flush=True)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("base", "reference"))
    parser.add_argument("name", help="of a base, or of the VAE of a reference")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.kind == "reference" or args.name not in EMBEDDED:
        vae, encoder = BASES[args.name] if args.kind == "base" else (args.name, "minilm")
        reference = WORLD / f"reference-{args.name.replace(':', '-').replace('/', '-')}"
        folder = KEPT / args.name if args.kind == "base" else reference
        train_core(vae, encoder, folder, steps=args.steps, rate=args.rate, seed=args.seed)
    if args.kind == "base":
        note_base(args.name)


if __name__ == "__main__":
    main()
