"""What faults break: images, prompts and components of the embedded world; and what a fault is."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sanakit.alignment.similarity import frequent_words
from sanakit.assembly import LatentDiffusion
from sanakit.checks import run_gates
from sanakit.checks.measure_text import text_evidence
from sanakit.checks.measure_vae import vae_evidence
from sanakit.contracts import GateResult, Verdict
from sanakit.core.dit import new_core
from sanakit.data import ImageDataset, load_images
from sanakit.data.cache import to_images
from sanakit.data.dataset import LatentDataset, build_dataset
from sanakit.errors import SanakitError
from sanakit.loading import load_base, load_text_encoder, load_vae
from sanakit.swap.control import agreement_with_base
from sanakit.text_encoders import TextEncoder
from sanakit.vaes import VAE

SIZE = 96
WORDS = [
    "red",
    "apple",
    "tree",
    "house",
    "cat",
    "dog",
    "bird",
    "blue",
    "green",
    "car",
    "moon",
    "star",
    "fish",
    "hand",
    "book",
    "key",
    "cup",
    "hat",
    "sun",
    "boat",
]


@dataclass
class World:
    """What faults break: images, prompts and components of the embedded world, loaded when first asked for."""

    folder: Path
    count: int = 64

    @cached_property
    def image_set(self) -> ImageDataset:
        dataset = load_images("embedded").split(True)
        return dataset.subset(range(min(self.count, len(dataset))))

    @cached_property
    def images(self) -> Tensor:
        return to_images(self.image_set.pixels(SIZE))

    @cached_property
    def prompts(self) -> list[str]:
        return [captions[0] for captions in self.image_set.captions]

    @cached_property
    def words(self) -> list[str]:
        """What two encoders are compared on."""
        return frequent_words([captions[-1] for captions in load_images("openclipart").split(False).captions])

    @cached_property
    def base(self) -> LatentDiffusion:
        return load_base("tiny-sana").system()

    @cached_property
    def base_card(self) -> dict[str, Any]:
        """What the base was trained with, by name."""
        return load_base("tiny-sana").card

    @cached_property
    def base_data(self) -> LatentDataset:
        return self.dataset(self.base)

    def dataset(self, system: LatentDiffusion) -> LatentDataset:
        return build_dataset(system.vae, system.text_encoder, self.image_set, SIZE, mirror=False, cache=None)

    def vae(self, name: str = "pca-f16c16") -> VAE:
        return load_vae(name)

    @cached_property
    def encoders(self) -> dict[str, TextEncoder]:
        return {name: load_text_encoder(name) for name in ("minilm", "wordllama")}

    def encoder(self, name: str = "minilm") -> TextEncoder:
        return copy.deepcopy(self.encoders[name])

    def fresh(self, name: str) -> Path:
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def small_system(self, seed: int = 0) -> tuple[LatentDiffusion, LatentDataset]:
        """A core of 30,000 parameters on f16c16 PCA latents: a step takes milliseconds."""
        encoder = self.encoder("wordllama")
        width = encoder.spec.embed_dim
        core = new_core(
            {
                "in_channels": 16,
                "out_channels": 16,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 2,
                "num_cross_attention_heads": 2,
                "cross_attention_head_dim": 16,
                "cross_attention_dim": 32,
                "caption_channels": width,
                "sample_size": 6,
                "patch_size": 1,
            },
            seed=seed,
        )
        system = LatentDiffusion(vae=self.vae(), text_encoder=encoder, core=core, image_size=SIZE)
        return system, self.dataset(system)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """threads: public threads where it cost somebody days. gate: what must catch it, or what refuses. stage: load,
    data, component, smoke or full."""

    name: str
    threads: str
    gate: str
    code: str
    stage: str
    plant: Callable[[World], list[GateResult]]

    def run(self, world: World) -> dict[str, Any]:
        """One row of the catalogue: is it caught, and does the first thing that fails name the cause?"""
        row = {"fault": self.name, "threads": self.threads, "gate": self.gate, "code": self.code, "stage": self.stage}
        try:
            failed = [r for r in self.plant(world) if r.verdict == Verdict.FAIL]
        except SanakitError as error:
            return row | {"caught": True, "named_cause": error.code == self.code, "said": error.found}
        said = "; ".join(f"{r.gate} {r.metric} {r.value:.4g}, threshold {r.threshold:.4g}" for r in failed[:2])
        named = bool(failed) and (failed[0].gate, failed[0].code) == (self.gate, self.code)
        value = {"value": failed[0].value} if failed and np.isfinite(failed[0].value) else {}
        return row | {"caught": bool(failed), "named_cause": named, "said": said} | value


FAULTS: list[Fault] = []


def fault(name: str, *, threads: str = "", gate: str, code: str, stage: str) -> Callable[..., Any]:
    def add(plant: Callable[[World], list[GateResult]]) -> Callable[[World], list[GateResult]]:
        FAULTS.append(Fault(name=name, threads=threads, gate=gate, code=code, stage=stage, plant=plant))
        return plant

    return add


def evaluated_vae(world: World, vae: VAE, images: Tensor | None = None) -> list[GateResult]:
    return run_gates("component", vae_evidence(vae, world.images if images is None else images))


def evaluated_text(world: World, encoder: TextEncoder, prompts: list[str] | None = None) -> list[GateResult]:
    return run_gates("component", text_evidence(encoder, prompts or world.prompts))


def evaluated_swap(world: World, encoder: TextEncoder, base: str = "minilm") -> list[GateResult]:
    """Of a text encoder beside the base's, as stage component evaluates it."""
    both = agreement_with_base(encoder, world.encoders[base], world.words)
    return run_gates("component", text_evidence(encoder, world.prompts) | both)
