"""Clean systems for the calibration of gates: what every gate reads where nothing is wrong.

Stage component: each VAE and text encoder on random splits of held-out images or prompts, in fp32 and in bf16, and each
VAE on the images of one source alone, as a folder of one kind of images is. Smoke:
the base against itself on disjoint held-out images, seeds of the order of the data and of samples. Smoke and full
from end to end: the base's own VAE and text encoder swapped in again as if they were new, and the VAE at another scale,
each with several seeds. No other encoder is here: whether it reaches the base's quality is what the gates are asked.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from clean_systems import instructed
from fault_world import SIZE, World
from system_faults import prompt_gains
from torch import Tensor

from sanakit.alignment.similarity import agreement, word_features
from sanakit.checks import run_gates
from sanakit.checks.measure_text import text_evidence
from sanakit.checks.measure_training import SPREAD_SAMPLES, base_evidence, course_evidence, sample_evidence
from sanakit.checks.measure_vae import evidence_of
from sanakit.config import MonitorsSection, make_config
from sanakit.contracts import GateResult
from sanakit.data import load_images
from sanakit.data.cache import to_images
from sanakit.data.dataset import LatentDataset, build_dataset
from sanakit.run import RunFolder
from sanakit.swap.control import SEED
from sanakit.swap.stages import full, prepare, smoke
from sanakit.text_encoders import PromptEmbeds, TextEncoder
from sanakit.training.batches import draw_batch
from sanakit.training.loop import TrainOptions
from sanakit.training.monitors import STILL, make_monitors
from sanakit.vaes import VAE

VAES = ("dc-f16c16", "dc-f16c32", "kl-f8c4", "pca-f8c4", "pca-f16c16", "pca-f16c32", "pca-f32c64")
SOURCES = ("openmoji", "openclipart")
ENCODERS = ("wordllama", "minilm")
CHUNK = 64  # held-out images of one reading of the base
COURSES, SAMPLED = 24, 6  # seeds of what is cheap, and of grids of samples
STREAMS = 200  # seeds of the frozen streams of a training, which alarm with a stated probability
BUDGET, STEPS, BATCH = 16, 24, 16  # of the swaps: steps of the race, of training, images of a step
Readings = Iterator[list[GateResult]]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One system, measured apart and kept. size: runs. measure:
    yields the gates' results of one run after the other."""

    system: str
    stage: str
    size: int
    measure: Callable[["CleanWorld"], Readings]


class CleanWorld(World):
    """The faults' world, with the base's held-out images in disjoint parts."""

    @cached_property
    def chunks(self) -> list[Any]:
        held_out = load_images("embedded").split(True)
        parts = [held_out.subset(range(i, i + CHUNK)) for i in range(0, len(held_out) - CHUNK + 1, CHUNK)]
        base = self.base
        return [build_dataset(base.vae, base.text_encoder, p, SIZE, mirror=False, cache=None) for p in parts]

    @cached_property
    def training_data(self) -> LatentDataset:
        """The base's latents and prompts of the training split, kept in the user's cache."""
        return build_dataset(
            self.base.vae, self.base.text_encoder, load_images("embedded").split(False), SIZE, mirror=True
        )

    def images_of(self, source: str) -> Tensor:
        held_out = load_images(source).split(True)
        return to_images(held_out.subset(range(min(self.count, len(held_out)))).pixels(SIZE))


def pieces(splits: int, seeds: int) -> list[Piece]:
    component = [
        Piece(
            system=f"{name}{note}",
            stage="component",
            size=splits,
            measure=lambda w, n=name, h=half: vae_splits(w.vae(n), w.images, splits, bf16=h),
        )
        for name, note, half in [*((n, "", False) for n in VAES), *((n, " in bf16", True) for n in VAES[1:3])]
    ]
    component += [
        Piece(
            system=f"{name} on {source} alone",
            stage="component",
            size=splits,
            measure=lambda w, n=name, s=source: vae_splits(w.vae(n), w.images_of(s), splits),
        )
        for source in SOURCES
        for name in VAES
    ]
    texts: dict[str, Callable[[CleanWorld], TextEncoder]] = {n: lambda w, n=n: w.encoder(n) for n in ENCODERS}
    texts |= {f"{n} with an instruction": lambda w, n=n: instructed(w, n) for n in ENCODERS}
    texts["minilm in bf16"] = lambda w: in_bf16(w.encoder())
    texts["minilm, null embedding kept in bf16"] = lambda w: with_null(w.encoder(), w.encoder())
    texts["minilm, null embedding made in bf16"] = lambda w: with_null(w.encoder(), in_bf16(w.encoder()))
    component += [
        Piece(system=name, stage="component", size=splits, measure=lambda w, m=make: text_splits(w, m(w), splits))
        for name, make in texts.items()
    ]
    wiring = [
        Piece(system="base on its own latents", stage="smoke", size=CHUNK, measure=base_alone),
        Piece(system="order and sigmas of the base", stage="smoke", size=COURSES, measure=order_and_sigmas),
        Piece(system="samples of the base", stage="smoke", size=SAMPLED, measure=samples),
        Piece(system="samples of the base, other seeds", stage="full", size=SAMPLED, measure=other_samples),
        Piece(system="frozen streams of a training", stage="full", size=STREAMS, measure=frozen_streams),
    ]
    swaps = {
        "own VAE swapped in": {"vae": {"name": "OWN"}},
        "own VAE at 1.25 of its scale": {"vae": {"name": "OWN", "scaling_factor": 1.25}},
        "own text encoder swapped in": {"text_encoder": {"name": "OWN"}},
    }
    ends = [
        Piece(system=name, stage="smoke and full", size=seeds, measure=lambda w, v=values: end_to_end(w, v, seeds))
        for name, values in swaps.items()
    ]
    return component + wiring + ends


def choose(total: int, generator: np.random.Generator) -> np.ndarray:
    return np.sort(generator.permutation(total)[: total // 2])


def vae_splits(vae: VAE, images: Tensor, count: int, *, bf16: bool = False) -> Readings:
    """All images are encoded once; each half is evaluated by itself."""
    if bf16:
        vae.model.to(torch.bfloat16)
    generator = np.random.default_rng(0)
    raw = torch.cat([vae.encode_raw(chunk) for chunk in images.split(16)])
    reconstructed = torch.cat([vae.decode_raw(chunk) for chunk in raw.split(16)])
    for _ in range(count):
        rows = torch.from_numpy(choose(len(images), generator))
        yield run_gates("component", evidence_of(vae, images[rows], raw[rows], reconstructed[rows]))


def text_splits(world: CleanWorld, encoder: TextEncoder, count: int) -> Readings:
    """Prompts and words in random splits; words beside those of the other encoder of the embedded world."""
    generator = np.random.default_rng(0)
    other = ENCODERS[encoder.spec.embed_dim == world.encoders[ENCODERS[0]].spec.embed_dim]
    sides = (encoder, encoder.with_random_weights(SEED), world.encoders[other])
    candidate_features, control, base = (word_features(side, world.words) for side in sides)
    for _ in range(count):
        prompts = [world.prompts[i] for i in choose(len(world.prompts), generator)]
        rows = torch.from_numpy(choose(len(world.words), generator))
        both = {
            "agreement": agreement(candidate_features[rows], base[rows]),
            "control_agreement": agreement(control[rows], base[rows]),
        }
        yield run_gates("component", text_evidence(encoder, prompts) | both)


def in_bf16(encoder: TextEncoder) -> TextEncoder:
    encoder.model.to(torch.bfloat16)
    return encoder


def with_null(encoder: TextEncoder, maker: TextEncoder) -> TextEncoder:
    """The base's own null embedding as checkpoints keep it: in half the digits, made by an encoder in either."""
    null = maker.encode([""], instruction=False)
    encoder.kept_null = PromptEmbeds(null.embeds.bfloat16().float(), null.mask)
    return encoder


def base_alone(world: CleanWorld) -> Readings:
    for data in world.chunks:
        evidence = base_evidence(world.base, data)
        yield run_gates("smoke", evidence | prompt_gains(world.base, data))


def order_and_sigmas(world: CleanWorld) -> Readings:
    """Small batches are the noisiest; the base's own shift, and one that Sana has at 1024 px."""
    data = world.base_data
    for seed in range(COURSES):
        system = copy.copy(world.base)
        system.flow_shift = (None, 3.0)[seed % 2]
        options = TrainOptions(max_steps=100, batch_size=(4, 16, 32, 64)[seed % 4], seed=seed)
        yield run_gates("smoke", course_evidence(system, data, options))


def samples(world: CleanWorld) -> Readings:
    for seed in range(SAMPLED):
        prompts = world.prompts[SPREAD_SAMPLES * seed : SPREAD_SAMPLES * (seed + 1)]
        yield run_gates("smoke", sample_evidence(world.base, world.base_data, prompts, seed))


def other_samples(world: CleanWorld) -> Readings:
    """The same prompts from other noise: what an equally good model, trained by another seed, would draw."""
    for seed in range(SAMPLED):
        prompts = world.prompts[SPREAD_SAMPLES * seed : SPREAD_SAMPLES * (seed + 1)]
        yield run_gates("full", sample_evidence(world.base, world.base_data, prompts, 1000 + seed))


def frozen_streams(world: CleanWorld) -> Readings:
    """The training images' latents and prompts as STEPS steps draw them, watched as stage full watches them: a test
    that alarms with probability alpha over a run must be tried with many seeds. Nothing is trained,
    as both parts are frozen."""
    section, data = MonitorsSection(adapters="off", activations="off"), world.training_data
    for seed in range(STREAMS):
        options = TrainOptions(max_steps=STEPS, batch_size=BATCH, seed=seed)
        monitors = make_monitors(section, world.base, data, (world.base, data), options)
        alarms, every = 0, max(1, STEPS // section.num_evaluations)
        for step in range(STEPS):
            batch = draw_batch(world.base, data, options, step)
            monitors.observe(batch, batch.noise - batch.latents)  # the velocity of a perfect model
            if (step + 1) % every == 0:
                alarms += sum(reading.alarm and reading.name in STILL for reading in monitors.report(step + 1))
        yield run_gates("full", {"drift_alarms": alarms})


def end_to_end(world: CleanWorld, values: dict[str, Any], seeds: int) -> Readings:
    """A short race of a real swap, then a short training with what it recommends; encodings serve every seed."""
    card = world.base_card
    values = {section: dict(keys) for section, keys in values.items()}
    if "vae" in values:
        values["vae"]["name"] = card["vae"]
        if "scaling_factor" in values["vae"]:
            values["vae"]["scaling_factor"] *= float(1 / world.base.vae.latents_std.mean())
    else:
        values["text_encoder"]["name"] = card["text_encoder"]
    race = {"budget_steps": BUDGET, "held_out": CHUNK, "strategies": ("finetune", "naive"), "rates": (0.25,)}
    values |= {"smoke": race, "train": {"batch_size": BATCH, "max_steps": STEPS}, "evaluate": {"num_prompts": 0}}
    first = prepare(make_config(values), world.fresh("swap"), lambda label, done, total: None)
    for seed in range(seeds):
        swap = copy.copy(first)
        swap.config = make_config(values, [f"train.seed={seed}"])
        swap.run = RunFolder.open(swap.config, world.fresh(f"swap-{seed}"))
        yield smoke(swap).results
        yield full(swap).results
