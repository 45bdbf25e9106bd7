"""Clean systems: nothing is broken, and no gate may fail."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from fault_world import SIZE, World, evaluated_swap, evaluated_text, evaluated_vae
from system_faults import OPTIONS, prompt_gains, trained
from torch import Tensor

from sanakit.checks import run_gates
from sanakit.checks.measure_training import (
    SPREAD_SAMPLES,
    base_evidence,
    course_evidence,
    movement_evidence,
    sample_evidence,
)
from sanakit.contracts import GateResult
from sanakit.data import load_images
from sanakit.data.cache import to_images
from sanakit.loading import load_text_encoder, load_vae
from sanakit.text_encoders import TEXT_ENCODERS, TextEncoder
from sanakit.vaes import VAE
from sanakit.vaes.pca import PCAVAE

Clean = tuple[str, Callable[[World], list[GateResult]]]


def clean_systems() -> list[Clean]:
    """Systems that nothing is wrong with: every geometry, both kinds, from names, folders and other images."""
    vaes = ["dc-f16c16", "dc-f16c32", "kl-f8c4", "pca-f8c4", "pca-f16c16", "pca-f16c32", "pca-f32c64"]
    systems: list[Clean] = [(f"VAE {n}", lambda w, n=n: evaluated_vae(w, w.vae(n))) for n in vaes]
    systems += [(f"VAE {n} from a folder", lambda w, n=n: evaluated_vae(w, from_folder(w, n))) for n in vaes[1:5]]
    systems += [
        (f"VAE {n} on the training split", lambda w, n=n: evaluated_vae(w, w.vae(n), train_split(w))) for n in vaes[:4]
    ]
    systems += [
        (f"VAE PCA f{ratio}c{channels}, fitted here", lambda w, r=ratio, c=channels: evaluated_vae(w, fitted(w, r, c)))
        for ratio, channels in ((8, 8), (8, 16), (16, 8), (16, 24), (16, 64))
    ]
    systems += [
        (f"VAE {n} at {s} px", lambda w, n=n, s=s: evaluated_vae(w, w.vae(n), at_size(w, s)))
        for n, s in (("kl-f8c4", 64), ("pca-f16c32", 128))
    ]
    encoders = ["minilm", "wordllama"]
    systems += [(f"text encoder {n}", lambda w, n=n: evaluated_text(w, w.encoder(n))) for n in encoders]
    systems += [
        (f"text encoder {n} on emoji names", lambda w, n=n: evaluated_text(w, w.encoder(n), emoji_names()))
        for n in encoders
    ]
    systems += [
        ("text encoder wordllama beside minilm", lambda w: evaluated_swap(w, w.encoder("wordllama"), "minilm")),
        ("text encoder minilm beside wordllama", lambda w: evaluated_swap(w, w.encoder("minilm"), "wordllama")),
        ("text encoder minilm from a folder", lambda w: evaluated_text(w, minilm_folder(w))),
        ("text encoder minilm with an instruction", lambda w: evaluated_text(w, instructed(w, "minilm"))),
        ("text encoder wordllama with an instruction", lambda w: evaluated_text(w, instructed(w, "wordllama"))),
        ("text encoder tiny BERT", lambda w: evaluated_text(w, untrained("minilm"), letters())),
        ("text encoder tiny table", lambda w: evaluated_text(w, untrained("wordllama"), letters())),
        ("base tiny-sana, wiring and samples", tiny_sana),
        ("small core, trained with EMA", small_trained),
    ]
    return systems


def from_folder(world: World, name: str) -> VAE:
    vae: Any = world.vae(name)
    folder = world.fresh(f"clean-{name}")
    if hasattr(vae, "save"):
        vae.save(folder)
    else:
        vae.model.register_to_config(scaling_factor=float(1 / vae.latents_std.mean()))
        vae.model.save_pretrained(folder)
    return load_vae(f"path:{folder}")


def train_split(world: World) -> Tensor:
    return to_images(load_images("embedded").split(False).subset(range(world.count)).pixels(SIZE))


def at_size(world: World, size: int) -> Tensor:
    return to_images(world.image_set.pixels(size))


def fitted(world: World, ratio: int, channels: int) -> VAE:
    pixels = load_images("embedded").split(False).subset(range(400)).pixels(SIZE)
    return PCAVAE.fit(torch.from_numpy(pixels).permute(0, 3, 1, 2), ratio, channels)


def emoji_names() -> list[str]:
    """Short ones: names of flags and families are longer than an encoder of the embedded world reads."""
    names = [c[0] for c in load_images("openmoji").split(True).captions]
    return [name for name in names if len(name.split()) <= 4][:64]


def letters() -> list[str]:
    """Prompts of a tiny twin: its words are letters."""
    generator = np.random.default_rng(0)
    return [" ".join("abcdefgh"[i] for i in generator.permutation(8)[: 2 + n % 5]) for n in range(48)]


def minilm_folder(world: World) -> TextEncoder:
    encoder: Any = world.encoder()
    folder = world.fresh("clean-minilm")
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return load_text_encoder(f"path:{folder}")


def instructed(world: World, name: str) -> TextEncoder:
    encoder = world.encoder(name)
    encoder.spec = replace(encoder.spec, instruction="drawing of: ", max_tokens=20)
    return encoder


def untrained(name: str) -> TextEncoder:
    """The tiny twin of an encoder; its weights are drawn, the same ones whatever ran before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TEXT_ENCODERS.get(name).tiny()


def tiny_sana(world: World) -> list[GateResult]:
    base, data = world.base, world.base_data
    evidence = base_evidence(base, data) | course_evidence(base, data, OPTIONS)
    evidence |= sample_evidence(base, data, world.prompts[:SPREAD_SAMPLES], 0)
    evidence |= prompt_gains(base, data)
    return run_gates("smoke", evidence)


def small_trained(world: World) -> list[GateResult]:
    start, system, state = trained(world, steps=8)
    evidence = movement_evidence(start.core, system.core, state.ema)
    evidence |= course_evidence(system, world.dataset(system), OPTIONS)
    return run_gates("smoke", evidence)
