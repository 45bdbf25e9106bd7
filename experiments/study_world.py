"""The small world of the decision study: bases, reference runs, and candidates that no package ships.

    python experiments/study_world.py base dc-minilm      # a base: VAE dc-f16c32, text encoder MiniLM
    python experiments/study_world.py reference dc-f16c16 # the same recipe in another VAE's latents
    python experiments/study_world.py candidates          # two tuned, an untrained and four PCA VAEs; two cut MiniLMs

Pictures at 64 px, 16 tokens, a core of 1.3 M parameters: small enough that a swap is run to its end under every
strategy in minutes, trained by the recipe of tiny-sana until its held-out loss is flat. Everything lies under
runs/study and is made again by the same command.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import diffusers
import torch

from sanakit.assembly import LatentDiffusion
from sanakit.contracts import LatentStats
from sanakit.core.dit import new_core, parameters_by_group
from sanakit.data import load_pictures
from sanakit.data.dataset import build_dataset
from sanakit.evaluate import averaged, held_out
from sanakit.text_encoders import load_text_encoder
from sanakit.train import TrainOptions, fit, new_state
from sanakit.vaes import load_vae
from sanakit.vaes.pca import ASSETS, PCAVAE, PCAPatchAutoencoder

WORLD = Path("runs/study")
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
STEPS = 8000


def train_core(vae_name: str, encoder_name: str, folder: Path, *, steps: int, rate: float, seed: int) -> dict[str, Any]:
    """Train a core from scratch with cosine decay and a weight average; writes it with its card into `folder`."""
    vae, encoder, pictures = load_vae(vae_name), load_text_encoder(encoder_name), load_pictures("embedded")
    train = build_dataset(vae, encoder, pictures.split(False), SIZE, mirror=True)
    test = build_dataset(vae, encoder, pictures.split(True), SIZE, mirror=False)
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
            own, known = held_out(system, test, count=len(test)).loss, held_out(system, train, count=len(test)).loss
        rows.append([until, round(known, 4), round(own, 4)])
        print(vae_name, encoder_name, rows[-1], f"{time.monotonic() - start:.0f} s", flush=True)
    assert state.ema is not None
    core.load_state_dict(state.ema)
    loss = {p: held_out(system, test, count=len(test), prompt=p).loss for p in ("own", "null", "shuffled")}
    core.save_pretrained(folder)
    card = {
        "recipe": f"experiments/study_world.py, {steps} steps of 32, learning rate {rate:g}, cosine, average .998",
        "seed": seed,
        "vae": vae_name,
        "text_encoder": encoder_name,
        "image_size": SIZE,
        "flow_shift": system.flow_shift,
        "curve": {"columns": ["step", "loss on training pictures", "held-out loss"], "rows": rows},
        "quality": {
            "held_out_loss": loss["own"],
            "null_prompt_loss": loss["null"],
            "shuffled_prompt_loss": loss["shuffled"],
        },
        "parameters": sum(p.numel() for p in core.parameters()),
        "data": {"source": "embedded, train half, mirrored", "fingerprint": pictures.fingerprint},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card["quality"]), flush=True)
    return card


def tuned_dc(images: torch.Tensor, *, steps: int, rate: float) -> diffusers.AutoencoderDC:
    """dc-f16c32 trained on, by squared error on (N, 3, H, W) uint8 pictures."""
    model = diffusers.AutoencoderDC.from_pretrained(
        ASSETS / "dc-f16c32", torch_dtype=torch.float32, low_cpu_mem_usage=False
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for step in range(steps):
        batch = images[torch.randint(len(images), (16,))].float().div(127.5).sub(1)
        loss = (model(batch).sample - batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            print(f"tuned {step}: {loss.item():.4f}", flush=True)
    return model


def rotated(vae: PCAVAE) -> PCAVAE:
    """The same subspace in a random orthonormal basis, every channel at its own unit variance: nothing is lost, and no
    channel means what it meant."""
    channels = vae.spec.latent_channels
    basis = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q
    variance = torch.tensor(vae.stats.std, dtype=torch.float64).square()
    std = (basis.square() @ variance).sqrt()
    model = PCAPatchAutoencoder(basis.float() @ vae.model.components, vae.model.mean, vae.model.ratio)
    return PCAVAE(model, vae.spec, LatentStats(std=tuple(std.tolist())))


def make_candidates() -> None:
    """near-dc, moved-dc: dc-f16c32 tuned at 64 px, for 150 steps, and for 400 at over three times the rate.
    untrained-dc: its architecture with random weights. pca-f16c24, pca-f16c48, pca-f8c8: closed form. pca-rotated:
    pca-f16c32 in a random orthonormal basis. minilm-5: MiniLM without its last layer. untrained-minilm: its
    architecture, random weights."""
    torch.manual_seed(0)
    images = torch.from_numpy(load_pictures("embedded").split(False).pixels(SIZE)).permute(0, 3, 1, 2).contiguous()
    for channels, ratio in ((24, 16), (48, 16), (8, 8)):
        PCAVAE.fit(images, ratio, channels).save(WORLD / f"pca-f{ratio}c{channels}")

    near = tuned_dc(images, steps=150, rate=3e-4)
    untrained = diffusers.AutoencoderDC(**{k: v for k, v in near.config.items() if not k.startswith("_")})
    moved = tuned_dc(images, steps=400, rate=1e-3)
    rotated(PCAVAE.from_folder(ASSETS / "pca-f16c32")).save(WORLD / "pca-rotated")
    for name, model in (("near-dc", near), ("moved-dc", moved), ("untrained-dc", untrained)):
        with torch.no_grad():
            raw = model.encode(images[:1024].float().div(127.5).sub(1)).latent
        model.register_to_config(scaling_factor=round(1 / raw.std().item(), 5))
        model.save_pretrained(WORLD / name)

    encoder = load_text_encoder("minilm")
    for name, model in (("minilm-5", encoder.model), ("untrained-minilm", type(encoder.model)(encoder.model.config))):
        state, config = model.state_dict(), copy.deepcopy(model.config)
        if name == "minilm-5":
            config.num_hidden_layers = 5
            state = {k: v for k, v in state.items() if not k.startswith("encoder.layer.5.")}
        cut = type(encoder.model)(config)
        cut.load_state_dict(state)
        cut.save_pretrained(WORLD / name)
        encoder.tokenizer.save_pretrained(WORLD / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("base", "reference", "candidates"))
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.kind == "candidates":
        make_candidates()
        return
    vae, encoder = BASES[args.name] if args.kind == "base" else (args.name, "minilm")
    folder = WORLD / f"{args.kind}-{args.name.replace(':', '-').replace('/', '-')}"
    train_core(vae, encoder, folder, steps=args.steps, rate=args.rate, seed=args.seed)


if __name__ == "__main__":
    main()
