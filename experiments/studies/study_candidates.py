"""Candidates of the decision study that no package ships, made from a seed alone into runs/study.

    python experiments/studies/study_candidates.py            # all that are missing, in order: minutes on one core

VAEs: principal components at other widths, ratios, bases and data; a cosine basis; the embedded deep-compression VAEs
trained on. Text encoders: noised and cut MiniLM (folders), WordLlama's table at fewer dimensions and with noise
(registered when this file is imported). A folder is written aside and renamed, so one that exists is whole.
"""

import argparse
import copy
import math
import shutil
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

import diffusers
import torch
from torch import Tensor, nn

from sanakit.contracts import LatentSpec, LatentStats, TextSpec
from sanakit.data import load_images
from sanakit.loading import load_text_encoder, load_vae
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.text_encoders.encoder_only import WORLD_TOKENS
from sanakit.text_encoders.static_table import WordLlama
from sanakit.vaes.pca import PCAVAE, PCAPatchAutoencoder

WORLD = Path("runs/study")
SIZE = 64
MEASURED = 1024  # images that tell how large latents are


@cache
def images(source: str = "embedded") -> Tensor:
    """Training images (N, 3, 64, 64) uint8."""
    return torch.from_numpy(load_images(source).split(False).pixels(SIZE)).permute(0, 3, 1, 2).contiguous()


def fitted(folder: Path, *, channels: int, ratio: int, source: str = "embedded") -> None:
    """Principal components of patches."""
    PCAVAE.fit(images(source), ratio, channels).save(folder)


def with_components(folder: Path, components: Tensor, mean: Tensor, ratio: int) -> None:
    """A patch autoencoder of any orthonormal rows (C, 3 ratio ratio), every channel at its own unit variance."""
    model = PCAPatchAutoencoder(components, mean, ratio)
    with torch.no_grad():
        latents = model.encode(images()[:MEASURED].float().div(127.5).sub(1))
    spec = LatentSpec(latent_channels=len(components), spatial_compression_ratio=ratio)
    PCAVAE(model, spec, LatentStats(std=tuple(latents.std((0, 2, 3)).tolist()))).save(folder)


def rotated(folder: Path, *, of: str) -> None:
    """The same subspace in a random orthonormal basis: nothing is lost, and no channel means what it meant."""
    vae = load_vae(of)
    channels = vae.spec.latent_channels
    basis = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q
    variance = torch.tensor(vae.stats.std, dtype=torch.float64).square()
    std = (basis.square() @ variance).sqrt()
    model = PCAPatchAutoencoder(basis.float() @ vae.model.components, vae.model.mean, vae.model.ratio)
    PCAVAE(model, vae.spec, LatentStats(std=tuple(std.tolist()))).save(folder)


def tilted(folder: Path, *, of: str, noise: float) -> None:
    """The components of a PCA VAE, each turned towards a random direction of `noise` times its length."""
    model: Any = load_vae(of).model
    size = model.components.shape[1]
    turned = model.components + noise * torch.randn(model.components.shape) / math.sqrt(size)
    with_components(folder, torch.linalg.qr(turned.T).Q.T, model.mean, model.ratio)


def cosines(folder: Path, *, channels: int, ratio: int) -> None:
    """The lowest frequencies of a cosine basis, the three colours of each one after the other."""
    x = (torch.arange(ratio) + 0.5) / ratio
    waves = torch.stack([torch.cos(math.pi * k * x) for k in range(ratio)])
    waves = waves / waves.norm(dim=1, keepdim=True)
    order = sorted(((i, j) for i in range(ratio) for j in range(ratio)), key=lambda ij: (ij[0] ** 2 + ij[1] ** 2, ij))
    rows = []
    for i, j in order[: -(-channels // 3)]:
        for colour in range(3):
            row = torch.zeros(3, ratio, ratio)
            row[colour] = torch.outer(waves[i], waves[j])
            rows.append(row.flatten())
    with_components(folder, torch.stack(rows)[:channels], torch.zeros(3 * ratio * ratio), ratio)


def tuned(folder: Path, *, of: str, steps: int, rate: float) -> None:
    """An embedded diffusers VAE trained on at 64 px by squared error; without steps,
    its architecture with random weights."""
    model: Any = copy.deepcopy(load_vae(of).model)
    if not steps:
        config = {name: value for name, value in model.config.items() if not name.startswith("_")}
        model = type(model)(**config)
    model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate or 1.0)
    for step in range(steps):
        batch = images()[torch.randint(len(images()), (16,))].float().div(127.5).sub(1)
        loss = (model(batch).sample - batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"{folder.name} {step}: {loss.item():.4f}", flush=True)
    with torch.no_grad():
        raw = encoded(model.eval(), images()[:MEASURED].float().div(127.5).sub(1))
    model.register_to_config(scaling_factor=round(1 / raw.std().item(), 5))
    model.save_pretrained(folder)


def encoded(model: nn.Module, batch: Tensor) -> Tensor:
    """Raw latents of a diffusers autoencoder, the posterior's mean where there is one."""
    output = model.encode(batch)  # type: ignore[operator]
    return output.latent_dist.mode() if isinstance(model, diffusers.AutoencoderKL) else output.latent


def changed_minilm(folder: Path, *, layers: int = 6, noise: float = 0.0, untrained: bool = False) -> None:
    """MiniLM with its first layers only, with every matrix noised by `noise` times its own deviation,
    or with random weights."""
    encoder: Any = load_text_encoder("minilm")
    config = copy.deepcopy(encoder.model.config)
    config.num_hidden_layers = layers
    model = type(encoder.model)(config)
    if not untrained:
        state = {name: value.clone() for name, value in encoder.model.state_dict().items()}
        cut = tuple(f"encoder.layer.{number}." for number in range(layers, 6))
        model.load_state_dict({name: value for name, value in state.items() if not name.startswith(cut)})
    with torch.no_grad():
        for parameter in model.parameters():
            if noise and parameter.ndim == 2:
                parameter.add_(noise * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)


MAKERS: dict[str, partial[None]] = {
    "pca-f16c20": partial(fitted, channels=20, ratio=16),
    "pca-f16c24": partial(fitted, channels=24, ratio=16),
    "pca-f16c40": partial(fitted, channels=40, ratio=16),
    "pca-f16c48": partial(fitted, channels=48, ratio=16),
    "pca-f16c64": partial(fitted, channels=64, ratio=16),
    "pca-f8c8": partial(fitted, channels=8, ratio=8),
    "pca-f8c12": partial(fitted, channels=12, ratio=8),
    "pca-f32c96": partial(fitted, channels=96, ratio=32),
    "pca-emoji": partial(fitted, channels=32, ratio=16, source="openmoji"),
    "pca-rotated": partial(rotated, of="pca-f16c32"),
    "pca-tilted": partial(tilted, of="pca-f16c32", noise=0.5),
    "pca-tilted-more": partial(tilted, of="pca-f16c32", noise=1.0),
    "cosine-f16c32": partial(cosines, channels=32, ratio=16),
    "cosine-f8c8": partial(cosines, channels=8, ratio=8),
    "near-dc": partial(tuned, of="dc-f16c32", steps=150, rate=3e-4),
    "moved-dc": partial(tuned, of="dc-f16c32", steps=400, rate=1e-3),
    "far-dc": partial(tuned, of="dc-f16c32", steps=400, rate=3e-3),
    "untrained-dc": partial(tuned, of="dc-f16c32", steps=0, rate=0.0),
    "moved-dc16": partial(tuned, of="dc-f16c16", steps=400, rate=1e-3),
    "moved-kl": partial(tuned, of="kl-f8c4", steps=200, rate=1e-3),
    "minilm-5": partial(changed_minilm, layers=5),
    "minilm-noise-10": partial(changed_minilm, noise=0.10),
    "minilm-noise-20": partial(changed_minilm, noise=0.20),
    "minilm-noise-30": partial(changed_minilm, noise=0.30),
    "untrained-minilm": partial(changed_minilm, untrained=True),
}


def name_of(candidate: str) -> str:
    """As commands take it: `path:` for what is made here (a text encoder reads as many tokens as MiniLM does), the
    registered name otherwise."""
    if candidate not in MAKERS:
        return candidate
    tokens = f"?max_tokens={WORLD_TOKENS}" if MAKERS[candidate].func is changed_minilm else ""  # type: ignore[attr-defined]
    return f"path:{WORLD / candidate}{tokens}"


def make(name: str) -> None:
    """One candidate's folder, if it is not there; its random numbers are its own."""
    folder, aside = WORLD / name, WORLD / f".{name}"
    if folder.is_dir():
        return
    torch.manual_seed(sum(name.encode()))
    shutil.rmtree(aside, ignore_errors=True)
    MAKERS[name](aside)
    aside.rename(folder)


class ChangedTable(WordLlama):
    """WordLlama's table at its first `width` dimensions (it was trained to be cut so),
    noised by `noise` times its deviation."""

    width = 256
    noise = 0.0

    @classmethod
    def load(cls) -> Self:
        whole = WordLlama.load()
        weights = whole.model.weight.detach()
        generator = torch.Generator().manual_seed(0)
        weights = weights + cls.noise * weights.std() * torch.randn(weights.shape, generator=generator)
        spec: TextSpec = replace(WordLlama.spec, embed_dim=cls.width)
        return cls(nn.Embedding.from_pretrained(weights[:, : cls.width].contiguous()), whole.tokenizer, spec)


@TEXT_ENCODERS.register("wordllama-128", title="WordLlama's first 128 dimensions", licence="MIT")
class WordLlama128(ChangedTable):
    width = 128


@TEXT_ENCODERS.register("wordllama-64", title="WordLlama's first 64 dimensions", licence="MIT")
class WordLlama64(ChangedTable):
    width = 64


@TEXT_ENCODERS.register("wordllama-32", title="WordLlama's first 32 dimensions", licence="MIT")
class WordLlama32(ChangedTable):
    width = 32


@TEXT_ENCODERS.register("wordllama-noise", title="WordLlama with noise of half its deviation", licence="MIT")
class NoisyWordLlama(ChangedTable):
    noise = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MAKERS), help="by default all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    WORLD.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        make(name)
        print(name, flush=True)


if __name__ == "__main__":
    main()
