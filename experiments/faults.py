"""The fault catalogue as data: small real systems, each broken in exactly one way that has cost people GPU-days, and
clean systems beside them. Used by tests/test_fault_catalogue.py and experiments/fault_catalogue.py.

A fault is a function of the `World` that either returns the results of gates or runs into the error that refuses it.
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sanakit import batches, train
from sanakit.alignment.similarity import frequent_words
from sanakit.assembly import LatentDiffusion
from sanakit.blind import conditional_gain
from sanakit.checkpoint import latest, load_checkpoint, preflight, save_checkpoint
from sanakit.config import make_config
from sanakit.contracts import GateResult, LatentSpec, LatentStats, TextSpec, Verdict
from sanakit.core.dit import new_core
from sanakit.data import Pictures, load_pictures
from sanakit.data.base import screen
from sanakit.data.cache import embeddings, raw_latents, to_images
from sanakit.data.dataset import LatentDataset, build_dataset
from sanakit.errors import SanakitError
from sanakit.evaluate import HeldOut, held_out
from sanakit.gates import run_gates
from sanakit.swap.control import agreement_with_base
from sanakit.swap.plan import load_base, swap_core
from sanakit.swap.probe_text import text_evidence
from sanakit.swap.probe_training import (
    base_evidence,
    course_evidence,
    movement_evidence,
    sample_evidence,
)
from sanakit.swap.probe_vae import vae_evidence
from sanakit.text_encoders import TEXT_ENCODERS, PromptEmbeds, TextEncoder, load_text_encoder
from sanakit.train import TrainOptions, check_movement, fit, new_state
from sanakit.vaes import VAE, VAES, load_vae
from sanakit.vaes.pca import PCAVAE

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
    """What faults break: pictures, prompts and components of the embedded world, loaded when first asked for."""

    folder: Path
    count: int = 64

    @cached_property
    def pictures(self) -> Pictures:
        found = load_pictures("embedded").split(True)
        return found.subset(range(min(self.count, len(found))))

    @cached_property
    def images(self) -> Tensor:
        return to_images(self.pictures.pixels(SIZE))

    @cached_property
    def prompts(self) -> list[str]:
        return [captions[0] for captions in self.pictures.captions]

    @cached_property
    def words(self) -> list[str]:
        """What two encoders are compared on."""
        return frequent_words([captions[-1] for captions in load_pictures("openclipart").split(False).captions])

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
        return build_dataset(system.vae, system.text_encoder, self.pictures, SIZE, mirror=False, cache=None)

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
    """threads: public threads where it cost somebody days. gate: what must catch it, or what refuses. stage: load, data,
    component, smoke or full."""

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


def judged_vae(world: World, vae: VAE, images: Tensor | None = None) -> list[GateResult]:
    return run_gates("component", vae_evidence(vae, world.images if images is None else images))


def judged_text(world: World, encoder: TextEncoder, prompts: list[str] | None = None) -> list[GateResult]:
    return run_gates("component", text_evidence(encoder, prompts or world.prompts))


def judged_swap(world: World, encoder: TextEncoder, base: str = "minilm") -> list[GateResult]:
    """Of a text encoder beside the base's, as stage component judges it."""
    both = agreement_with_base(encoder, world.encoders[base], world.words)
    return run_gates("component", text_evidence(encoder, world.prompts) | both)


# --- a VAE by itself -------------------------------------------------------------------------------------------------


class Broken(VAE):
    """A sound VAE with its encoder's input, its decoder's output, or both, changed on the way."""

    def __init__(
        self,
        sound: VAE,
        *,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda x: x,
        raw: Callable[[Tensor], Tensor] = lambda x: x,
        stats: LatentStats | None = None,
        spec: LatentSpec | None = None,
    ) -> None:
        super().__init__(sound.model, spec or sound.spec, stats or sound.stats)
        self.sound, self.before, self.after, self.raw = sound, before, after, raw

    def _encode(self, images: Tensor) -> Tensor:
        return self.raw(self.sound._encode(self.before(images)))

    def _decode(self, raw_latents: Tensor) -> Tensor:
        return self.after(self.sound._decode(raw_latents))


def scaled(world: World, name: str, factor: float) -> list[GateResult]:
    vae = world.vae(name)
    vae.set_stats(LatentStats.from_scaling(factor))
    return judged_vae(world, vae)


@fault(
    "scaling factor missing",
    threads="diffusers 8887, 6753",
    gate="component/scale-high",
    code="SK0203",
    stage="component",
)
def scale_missing(world: World) -> list[GateResult]:
    return scaled(world, "pca-f16c16", 1.0)


@fault(
    "scaling factor inverted (1/s)",
    threads="diffusers 6923, 5166",
    gate="component/scale-high",
    code="SK0203",
    stage="component",
)
def scale_inverted(world: World) -> list[GateResult]:
    own = float(world.vae("pca-f8c4").latents_std.mean())
    return scaled(world, "pca-f8c4", own)


@fault(
    "scaling factor of another VAE",
    threads="SimpleTuner 1560, Open-Sora 838",
    gate="component/scale-low",
    code="SK0203",
    stage="component",
)
def scale_of_another(world: World) -> list[GateResult]:
    return scaled(world, "dc-f16c16", 0.13025)  # SDXL's


@fault("shift missing", threads="diffusers 8887", gate="component/shift", code="SK0209", stage="component")
def shift_missing(world: World) -> list[GateResult]:
    sound = world.vae()
    far = 2 * sound.latents_std
    vae = Broken(sound, raw=lambda z: z + far)
    vae._decode = lambda raw: sound._decode(raw - far)  # type: ignore[method-assign]
    return judged_vae(world, vae)


@fault(
    "latents decoded with the scale alone, the shift dropped",
    threads="diffusers pipeline_sana.py 961; Open-Sora 838",
    gate="component/normalisation",
    code="SK0215",
    stage="component",
)
def shift_dropped(world: World) -> list[GateResult]:
    vae = world.vae("pca-f32c64")
    vae.set_stats(replace(vae.stats, mean=(0.5,) * 64))
    vae.denormalize = lambda latents: latents * vae.latents_std  # type: ignore[method-assign]
    return judged_vae(world, vae)


@fault(
    "input range [0, 1] into a VAE of [-1, 1]",
    threads="diffusion-pipe 545",
    gate="component/input-range",
    code="SK0210",
    stage="component",
)
def range_halved(world: World) -> list[GateResult]:
    return judged_vae(world, Broken(world.vae(), before=lambda x: x / 2 + 0.5))


@fault(
    "input range [-1, 1] into a VAE of [0, 1]",
    threads="diffusion-pipe 545",
    gate="component/input-range",
    code="SK0210",
    stage="component",
)
def range_doubled(world: World) -> list[GateResult]:
    return judged_vae(world, Broken(world.vae(), before=lambda x: 2 * x - 1))


@fault(
    "channel order BGR", threads="diffusion-pipe 545", gate="component/channel-order", code="SK0211", stage="component"
)
def channel_order(world: World) -> list[GateResult]:
    return judged_vae(world, Broken(world.vae(), before=lambda x: x.flip(1)))


@fault("height and width exchanged", gate="component/orientation", code="SK0212", stage="component")
def transposed(world: World) -> list[GateResult]:
    return judged_vae(world, Broken(world.vae(), before=lambda x: x.mT))


@fault(
    "tiled decoding without blending",
    threads="diffusers 7310",
    gate="component/seams",
    code="SK0213",
    stage="component",
)
def tiling(world: World) -> list[GateResult]:
    """Each half is decoded alone: padding and normalisation see their own tile only."""
    vae = Broken(world.vae("kl-f8c4"))
    halves = lambda raw: raw.split(raw.shape[3] // 2, 3)
    vae._decode = lambda raw: torch.cat([vae.sound._decode(half) for half in halves(raw)], 3)  # type: ignore[method-assign]
    return judged_vae(world, vae)


class HalfSum(nn.Module):
    """Linear attention's sum over tokens, accumulated in half precision: it overflows with the number of tokens."""

    def forward(self, x: Tensor) -> Tensor:
        keys = (x.flatten(2).abs() * 16).half()
        total = keys.cumsum(-1, dtype=torch.float16)[..., -1].float()
        return x + 0 * total[..., None, None]


@fault(
    "half precision overflows at the training resolution only",
    threads="diffusers 9844, 7310, 3209; sd-scripts 952; Sana 65",
    gate="component/finite-latents",
    code="SK0204",
    stage="component",
)
def overflow(world: World) -> list[GateResult]:
    vae = Broken(world.vae("pca-f8c4"), before=HalfSum())
    small = vae_evidence(vae, nn.functional.avg_pool2d(world.images, 3))
    assert not small["nonfinite_latents"], "sound at 32 px"
    return judged_vae(world, vae)


@fault("latent channels collapsed", threads="DC-Gen", gate="component/collapse", code="SK0214", stage="component")
def collapse(world: World) -> list[GateResult]:
    noise = torch.randn(1, 16, 6, 6, generator=torch.Generator().manual_seed(0))

    def one(z: Tensor) -> Tensor:
        return z[:, :1] + 0.05 * z.std() * noise.expand_as(z)

    vae = Broken(world.vae(), raw=one)
    std = one(world.vae()._encode(world.images)).std().item()
    vae.set_stats(LatentStats(std=(std,)))
    vae._decode = lambda raw: vae.sound._decode(vae.sound._encode(world.images)[: len(raw)])  # type: ignore[method-assign]
    return run_gates("component", vae_evidence(vae, world.images[:16]))


@fault("a latent channel is dead", gate="component/dead-channels", code="SK0205", stage="component")
def dead(world: World) -> list[GateResult]:
    keep = torch.ones(1, 16, 1, 1)
    keep[:, 11] = 0
    return judged_vae(world, Broken(world.vae(), raw=lambda z: z * keep))


@fault(
    "decoder of another VAE of the same shape",
    threads="PixArt-sigma 56",
    gate="component/reconstruction",
    code="SK0201",
    stage="component",
)
def other_decoder(world: World) -> list[GateResult]:
    other = world.vae("dc-f16c32")
    vae = Broken(world.vae("pca-f16c32"))
    scale = other.latents_std.mean() / world.vae("pca-f16c32").latents_std
    vae._decode = lambda raw: other._decode(raw * scale)  # type: ignore[method-assign]
    return judged_vae(world, vae)


@fault(
    "geometry declared wrongly",
    threads="Sana vae.scale_factor",
    gate="component/geometry",
    code="SK0202",
    stage="component",
)
def geometry(world: World) -> list[GateResult]:
    return judged_vae(world, Broken(world.vae(), spec=LatentSpec(latent_channels=16, spatial_compression_ratio=8)))


@fault("posterior sampled instead of its mode", gate="component/repeatable-latents", code="SK0216", stage="component")
def sampled(world: World) -> list[GateResult]:
    return judged_vae(world, Broken(world.vae(), raw=lambda z: z + 0.1 * z.std() * torch.randn_like(z)))


# --- a text encoder by itself ----------------------------------------------------------------------------------------


class BrokenText(TextEncoder):
    """A sound encoder with its embeddings and mask changed on the way out."""

    def __init__(
        self,
        sound: TextEncoder,
        change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda e, m: (e, m),
        spec: TextSpec | None = None,
    ) -> None:
        super().__init__(sound.model, spec or sound.spec)
        self.sound, self.change = sound, change

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        self.sound.spec = replace(self.sound.spec, max_tokens=self.spec.max_tokens)
        embeds, mask, truncated = self.sound._encode(prompts)
        return *self.change(embeds, mask), truncated


@fault(
    "tokens padded left, mask right",
    threads="diffusers 8673",
    gate="component/padding-side",
    code="SK0324",
    stage="component",
)
def padding_side(world: World) -> list[GateResult]:
    sound = world.encoder()

    def left(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        shift = (~mask).sum(1).tolist()
        return torch.stack([e.roll(n, 0) for e, n in zip(embeds, shift, strict=True)]), mask

    return judged_text(world, BrokenText(sound, left))


class NoMask(TextEncoder):
    def __init__(self, sound: Any) -> None:
        super().__init__(sound.model, sound.spec)
        self.tokenizer = sound.tokenizer

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        batch = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.spec.max_tokens,
            padding_side="right",
            return_tensors="pt",
        )
        embeds = self.model(input_ids=batch["input_ids"]).last_hidden_state
        return embeds, batch["attention_mask"].bool(), 0


@fault(
    "the model never sees the mask",
    threads="flux 507; CogVideo 686",
    gate="component/padding",
    code="SK0303",
    stage="component",
)
def mask_unseen(world: World) -> list[GateResult]:
    return judged_text(world, NoMask(world.encoder()))


@fault(
    "the mask keeps every token", threads="SimpleTuner 1726", gate="component/mask", code="SK0323", stage="component"
)
def mask_full(world: World) -> list[GateResult]:
    return judged_text(world, BrokenText(world.encoder(), lambda e, m: (e, torch.ones_like(m))))


@fault("prompts truncated", threads="diffusion-pipe 497", gate="component/truncation", code="SK0304", stage="component")
def truncated(world: World) -> list[GateResult]:
    generator = np.random.default_rng(0)
    return judged_text(world, world.encoder(), [" ".join(generator.permutation(WORDS)) for _ in range(32)])


class Instructed(TextEncoder):
    """Drops what stands before the last sentence: a prefix that is cut off before the model reads it."""

    def __init__(self, sound: TextEncoder, instruction: str) -> None:
        super().__init__(sound.model, replace(sound.spec, instruction=instruction))
        self.sound = sound

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        self.sound.spec = replace(self.spec, instruction="")
        return self.sound._encode([prompt.removeprefix(self.spec.instruction) for prompt in prompts])


@fault("instruction prefix missing", threads="Sana 265", gate="component/instruction", code="SK0325", stage="component")
def prefix_missing(world: World) -> list[GateResult]:
    return judged_text(world, Instructed(world.encoder(), "describe in detail: "))


@fault(
    "null embedding of the old encoder",
    threads="Sana 265, 216; diffusers 7920; FastVideo 1752",
    gate="component/null",
    code="SK0326",
    stage="component",
)
def old_null(world: World) -> list[GateResult]:
    encoder = world.encoder("wordllama")
    old = encoder.encode(["an older encoder's idea of nothing"])
    encoder.kept_null = old
    return judged_text(world, encoder)


@fault(
    "logits of a CausalLM taken for hidden states",
    threads="diffusers 10489",
    gate="component/hidden-states",
    code="SK0305",
    stage="component",
)
def logits(world: World) -> list[GateResult]:
    """The first output of a model with its language-modelling head on."""
    sound: Any = world.encoder()
    head = sound.model.embeddings.word_embeddings.weight
    spec = replace(sound.spec, embed_dim=len(head))
    return judged_text(world, BrokenText(sound, lambda e, m: (e @ head.T, m), spec), world.prompts[:16])


@fault(
    "pooled vector in place of tokens",
    threads="diffusers pipeline_sana.py 275",
    gate="component/tokens-differ",
    code="SK0327",
    stage="component",
)
def pooled(world: World) -> list[GateResult]:
    def repeat(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        weights = mask[..., None].float()
        mean = (embeds * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1)
        nudge = torch.arange(embeds.shape[1])[None, :, None] * 1e-4
        return mean.expand_as(embeds) + nudge * embeds, mask

    return judged_text(world, BrokenText(world.encoder(), repeat))


@fault("the same embedding for every prompt", gate="component/prompts-differ", code="SK0302", stage="component")
def constant(world: World) -> list[GateResult]:
    sound = world.encoder()
    fixed = sound._encode(["a fixed prompt of several words and more words than that"])[0]
    return judged_text(world, BrokenText(sound, lambda e, m: (fixed[:, : e.shape[1]] + 1e-3 * e, m[:1].expand_as(m))))


class Mute(TextEncoder):
    """One embedding and one mask for all prompts, and noise that tells them apart but says nothing."""

    def __init__(self, sound: TextEncoder, noise: float) -> None:
        super().__init__(sound.model, sound.spec)
        self.noise = noise
        self.fixed, self.mask, _ = sound._encode(["a fixed prompt of several words and more words than that"])

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        rows = []
        for prompt in prompts:
            seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "little")
            rows.append(torch.randn(self.fixed.shape[1:], generator=torch.Generator().manual_seed(seed)))
        mask, length = self.mask.expand(len(prompts), -1), self.spec.max_tokens
        embeds = (self.fixed + self.noise * self.fixed.std() * torch.stack(rows)) * mask[..., None]
        return embeds[:, :length], mask[:, :length], 0


@fault(
    "the same embedding for every prompt but for small noise",
    gate="component/prompts-differ",
    code="SK0302",
    stage="component",
)
def mute(world: World) -> list[GateResult]:
    return judged_swap(world, Mute(world.encoder(), 0.1))


@fault(
    "the same embedding for every prompt but for much noise",
    gate="component/meaning",
    code="SK0329",
    stage="component",
)
def loud(world: World) -> list[GateResult]:
    return judged_swap(world, Mute(world.encoder(), 1.0))


class FirstToken(TextEncoder):
    """Hands on the begin mark and the first token behind it."""

    def __init__(self, sound: Any) -> None:
        super().__init__(sound.model, sound.spec)
        self.sound = sound

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        self.sound.spec = self.spec
        embeds, mask, truncated = self.sound._encode(prompts)
        first = mask & (torch.arange(mask.shape[1]) < 2)
        return embeds * first[..., None], first, truncated


@fault("only the first token is read", gate="component/words-read", code="SK0328", stage="component")
def first_token(world: World) -> list[GateResult]:
    return judged_swap(world, FirstToken(world.encoder("wordllama")))


@fault("weights drawn, not trained", gate="component/meaning", code="SK0329", stage="component")
def random_weights(world: World) -> list[GateResult]:
    """A character-level BERT, initialised and saved, as one loads a folder whose weights were never trained."""
    return judged_swap(world, load_text_encoder(f"path:{random_bert(world)}"))


def random_bert(world: World) -> Path:
    """A folder with a randomly initialised character-level BERT and its tokenizer."""
    from transformers import BertConfig, BertModel

    from sanakit.text_encoders.tiny import SPECIAL, byte_tokenizer

    folder = world.folder / "random-bert"
    if not folder.is_dir():
        sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
        with torch.random.fork_rng():
            torch.manual_seed(1)
            BertModel(BertConfig(vocab_size=256 + len(SPECIAL), **sizes)).save_pretrained(folder)
        byte_tokenizer("<bos>", "<eos>").save_pretrained(folder)
    return folder


@fault(
    "vocabulary permuted: the tokenizer's numbers name other words",
    gate="component/meaning",
    code="SK0329",
    stage="component",
)
def permuted_vocabulary(world: World) -> list[GateResult]:
    encoder: Any = world.encoder("wordllama")
    table = encoder.model.weight
    with torch.no_grad():
        table.copy_(table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))])
    return judged_swap(world, encoder)


@fault(
    "encoder overflows to NaN",
    threads="diffusers 9844",
    gate="component/finite-embeddings",
    code="SK0301",
    stage="component",
)
def text_nan(world: World) -> list[GateResult]:
    def overflowing(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return (embeds * 1e5).half().float(), mask

    return judged_text(world, BrokenText(world.encoder(), overflowing))


@fault(
    "NaNs hidden as dropped captions",
    threads="mosaicml/diffusion drop_nans",
    gate="component/prompts-kept",
    code="SK0322",
    stage="component",
)
def hidden_nan(world: World) -> list[GateResult]:
    def hide(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        bad = mask.sum(1) > 5
        return torch.where(bad[:, None, None], torch.zeros(()), embeds), mask

    return judged_text(world, BrokenText(world.encoder(), hide))


@fault("dropout left on", gate="component/repeatable-embeddings", code="SK0321", stage="component")
def dropout(world: World) -> list[GateResult]:
    encoder = world.encoder()
    encoder.model.train()
    return judged_text(world, encoder)


# --- the cache and the data ------------------------------------------------------------------------------------------


def filled(world: World, name: str, pictures: Pictures | None = None, size: int = 32) -> tuple[Path, VAE, Pictures]:
    cache, vae = world.fresh(name), world.vae("pca-f8c4")
    pictures = pictures or world.pictures.subset(range(16))
    raw_latents(vae, pictures, size, cache=cache)
    return cache, vae, pictures


@fault("stale cache: the VAE changed", threads="diffusion-pipe 497", gate="cache key", code="SK0404", stage="data")
def stale_vae(world: World) -> list[GateResult]:
    cache, _, pictures = filled(world, "stale-vae")
    raw_latents(VAES.get("pca-f8c4").tiny(), pictures, 32, cache=cache, must_exist=True)
    return []


@fault("stale cache: the text encoder changed", threads="kohya_ss 1629", gate="cache key", code="SK0404", stage="data")
def stale_encoder(world: World) -> list[GateResult]:
    cache = world.fresh("stale-encoder")
    encoder = world.encoder("wordllama")
    embeddings(encoder, world.prompts[:8], cache=cache)
    with torch.no_grad():
        encoder.model.weight.mul_(1.01)
    embeddings(encoder, world.prompts[:8], cache=cache, must_exist=True)
    return []


@fault("stale cache: crop or size changed", threads="OneTrainer 175", gate="cache key", code="SK0404", stage="data")
def stale_size(world: World) -> list[GateResult]:
    cache, vae, pictures = filled(world, "stale-size")
    raw_latents(vae, pictures, 64, cache=cache, must_exist=True)
    return []


@fault(
    "stale cache: a picture changed under its name",
    threads="OneTrainer 175",
    gate="cache key",
    code="SK0404",
    stage="data",
)
def stale_picture(world: World) -> list[GateResult]:
    cache, vae, pictures = filled(world, "stale-picture")
    changed = replace(pictures, images=[world.pictures.images[20], *pictures.images[1:]])
    raw_latents(vae, changed, 32, cache=cache, must_exist=True)
    return []


@contextmanager
def read_as(decode: Callable[[bytes, int], np.ndarray]) -> Iterator[None]:
    """Pictures read by another program's rules, as a cache written elsewhere holds them."""
    from sanakit.data import base

    own = base.decode
    base.decode = decode
    try:
        yield
    finally:
        base.decode = own


def photographs(alpha: bool) -> Pictures:
    """Upright on disk only by an EXIF tag, or with a transparent ground."""
    import io

    images = []
    for seed in range(16):
        noise = np.random.default_rng(seed).integers(256, size=(8, 8, 4), dtype=np.uint8)
        noise[..., 3] = 255 if not alpha else noise[..., 3]
        picture, out = Image.fromarray(noise).resize((64, 48)), io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(out, "PNG", **({} if alpha else {"exif": exif}))
        images.append(out.getvalue())
    return Pictures(source="photographs", names=[str(i) for i in range(16)], captions=[["a"]] * 16, images=images)


def naive_decode(data: bytes, size: int, fit: str) -> np.ndarray:
    """Neither EXIF nor alpha is looked at."""
    import io

    with Image.open(io.BytesIO(data)) as file:
        return np.asarray(Image.fromarray(np.asarray(file.convert("RGBA"))[..., :3]).resize((size, size)))


@fault(
    "EXIF rotation ignored by the program that filled the cache",
    threads="OneTrainer 175",
    gate="spot check",
    code="SK0404",
    stage="data",
)
def exif(world: World) -> list[GateResult]:
    with read_as(naive_decode):
        cache, vae, pictures = filled(world, "exif", photographs(alpha=False))
    raw_latents(vae, pictures, 32, cache=cache)
    return []


@fault(
    "alpha ignored by the program that filled the cache",
    threads="OneTrainer 175",
    gate="spot check",
    code="SK0404",
    stage="data",
)
def alpha(world: World) -> list[GateResult]:
    with read_as(naive_decode):
        cache, vae, pictures = filled(world, "alpha", photographs(alpha=True))
    raw_latents(vae, pictures, 32, cache=cache)
    return []


@fault("a shard of the cache is damaged", gate="shard hash", code="SK0404", stage="data")
def shard(world: World) -> list[GateResult]:
    cache, vae, pictures = filled(world, "shard")
    path = next(cache.rglob("0*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)
    raw_latents(vae, pictures, 32, cache=cache)
    return []


@fault(
    "samples dropped silently",
    threads="webdataset warn_and_continue; CLIP_benchmark 88",
    gate="ledger",
    code="SK0402",
    stage="data",
)
def dropped(world: World) -> list[GateResult]:
    some = world.pictures.subset(range(20))
    broken = replace(
        some, images=[data[: len(data) // 3] if i % 4 == 0 else data for i, data in enumerate(some.images)]
    )
    screen(broken, max_set_aside=0.05)
    return []


# --- what is read from disk or asked for -----------------------------------------------------------------------------


@fault(
    "an option accepted and ignored",
    threads="unsloth 6838; SimpleTuner; Sana vae.scale_factor",
    gate="configuration",
    code="SK0104",
    stage="load",
)
def ignored_option(world: World) -> list[GateResult]:
    make_config({"vae": {"name": "dc-f16c16", "scale_factor": 0.41407}})
    return []


@fault("pickled weights", threads="CVE-2025-32434, CVE-2026-24747", gate="loader", code="SK0111", stage="load")
def pickled(world: World) -> list[GateResult]:
    folder = world.fresh("pickled")
    VAES.get("kl-f8c4").tiny().model.save_pretrained(folder, safe_serialization=False)
    load_vae(f"path:{folder}")
    return []


@fault(
    "a repository that runs its own code",
    threads="CVE-2026-4372, CVE-2026-5241",
    gate="loader",
    code="SK0112",
    stage="load",
)
def own_code(world: World) -> list[GateResult]:
    folder = world.fresh("own-code")
    (folder / "config.json").write_text(json.dumps({"_class_name": "MyVAE", "auto_map": {"AutoModel": "vae.MyVAE"}}))
    load_vae(f"path:{folder}")
    return []


@fault(
    "config and weights of different revisions", threads="diffusers 10489", gate="loader", code="SK0107", stage="load"
)
def revisions(world: World) -> list[GateResult]:
    folder = world.fresh("revisions")
    VAES.get("kl-f8c4").tiny().model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    load_vae(f"path:{folder}")
    return []


@fault(
    "a VAE whose grid does not fit the core", threads="SanaPipeline 440", gate="assembly", code="SK0110", stage="load"
)
def grid(world: World) -> list[GateResult]:
    swap_core(replace_size(world.base, 80), world.vae("pca-f32c64"), 0)
    return []


def replace_size(system: LatentDiffusion, size: int) -> LatentDiffusion:
    changed = copy.copy(system)
    changed.image_size = size
    return changed


@fault(
    "dry run passes, the disk is too small for the run",
    threads="torchgeo-bench 404",
    gate="preflight",
    code="SK0903",
    stage="load",
)
def disk(world: World) -> list[GateResult]:
    preflight(world.fresh("disk"), 1 << 48)
    return []


# --- the system: training and sampling -------------------------------------------------------------------------------


@fault(
    "wrong VAE of matching shape, silently", threads="PixArt-sigma 56", gate="smoke/base", code="SK0520", stage="smoke"
)
def wrong_vae(world: World) -> list[GateResult]:
    system = copy.copy(world.base)
    system.vae = world.vae("pca-f16c32")
    return run_gates("smoke", base_evidence(system, world.dataset(system)))


OPTIONS = TrainOptions(max_steps=400, batch_size=16, warmup=1, learning_rate=2e-3, schedule="constant")


@fault(
    "mask added where the base was trained without",
    threads="diffusers 8673; SimpleTuner 1726",
    gate="smoke/mask",
    code="SK0521",
    stage="smoke",
)
def mask_added(world: World) -> list[GateResult]:
    """Trained with every token visible, on pictures whose word stands behind the place where the mask ends."""
    system, data = world.small_system()
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(2, (len(data), 1, 1, 1, 1), generator=generator) * 2.0 - 1
    latents = sign * torch.randn((1, 1, *data.latents.shape[2:]), generator=generator)
    embeds = torch.zeros_like(data.captions.embeds[: len(data)])
    embeds[:, 4:] = 3 * sign.reshape(-1, 1, 1).to(embeds.dtype)
    mask = torch.zeros_like(data.captions.mask[: len(data)])
    mask[:, :4] = True
    count = torch.ones(len(data), dtype=torch.long)
    told = replace(data, latents=latents, captions=PromptEmbeds(embeds, mask), first=count.cumsum(0) - 1, count=count)
    without = replace(told, captions=PromptEmbeds(embeds, torch.ones_like(mask)))
    options = replace(OPTIONS, learning_rate=5e-3, prompt_dropout=0.0)
    fit(system, without, options, new_state(system.core, everything(system), options), until=120)
    return run_gates("smoke", base_evidence(system, told))


def everything(system: LatentDiffusion) -> list[dict[str, Any]]:
    return [{"params": list(system.core.parameters()), "scale": 1.0}]


@fault(
    "data order repeated",
    threads="accelerate 2016, 2823, 3242, 4071; meta-pytorch/data 1437; datasets 7447; llm-foundry 1277",
    gate="smoke/data-order",
    code="SK0522",
    stage="smoke",
)
def order(world: World) -> list[GateResult]:
    system, data = world.small_system()
    with patched(batches, "batch_indices", lambda total, size, step, seed: torch.arange(size) % total):
        return run_gates("smoke", course_evidence(system, data, OPTIONS))


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    own = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)


@fault(
    "train and sample with different flow shifts",
    threads="Sana flow_shift",
    gate="smoke/flow-shift",
    code="SK0523",
    stage="smoke",
)
def shifted(world: World) -> list[GateResult]:
    system, data = world.small_system()
    system.flow_shift = 3.0
    own = batches.sample_sigmas
    with patched(
        batches, "sample_sigmas", lambda count, *, shift, generator: own(count, shift=1.0, generator=generator)
    ):
        return run_gates("smoke", course_evidence(system, data, OPTIONS))


def trained(world: World, steps: int = 6, **changes: Any) -> tuple[LatentDiffusion, LatentDiffusion, Any]:
    """A small system before and after some steps."""
    system, data = world.small_system()
    start = copy.copy(system)
    start.core = copy.deepcopy(system.core)
    options = replace(OPTIONS, ema_decay=0.9, **changes)
    state = new_state(system.core, everything(system), options)
    fit(system, data, options, state, until=steps)
    return start, system, state


@fault(
    "EMA never updated",
    threads="Open-Sora-Plan 186; PixArt-sigma 156",
    gate="smoke/average",
    code="SK0524",
    stage="smoke",
)
def ema(world: World) -> list[GateResult]:
    with patched(train, "update_ema", lambda average, core, decay: None):
        start, system, state = trained(world)
    return run_gates("smoke", movement_evidence(start.core, system.core, state.ema))


@fault(
    "parameters that cannot move in bf16", threads="speculators 765", gate="smoke/moved", code="SK0508", stage="smoke"
)
def stuck(world: World) -> list[GateResult]:
    system, _ = world.small_system()
    core = system.core
    with torch.no_grad():
        for p in core.parameters():
            p.add_(torch.sign(p) + (p == 0))  # of size 1: an update of 1e-4 is below bf16's spacing there
    core.to(torch.bfloat16)
    start = copy.deepcopy(core)
    optimizer = torch.optim.AdamW(core.parameters(), lr=1e-4, weight_decay=0.0)
    for p in core.parameters():
        p.grad = torch.ones_like(p)
    for _ in range(4):
        optimizer.step()
    return run_gates("smoke", movement_evidence(start, core, None))


@fault("frozen groups that moved", threads="unsloth 6838", gate="smoke/moved", code="SK0508", stage="smoke")
def strayed(world: World) -> list[GateResult]:
    start, system, _ = trained(world)
    system.core.patch_embed.requires_grad_(False)  # said to be frozen, but the optimiser had it
    return run_gates("smoke", movement_evidence(start.core, system.core, None))


@fault(
    "loss fine, samples broken: the sign of the velocity",
    threads="PixArt-sigma 114, 50",
    gate="smoke/samples",
    code="SK0507",
    stage="smoke",
)
def chaotic(world: World) -> list[GateResult]:
    system = copy.copy(world.base)
    right = system.velocity
    system.velocity = lambda noisy, sigmas, prompt: -right(noisy, sigmas, prompt)  # type: ignore[method-assign]
    return run_gates("smoke", sample_evidence(system, world.base_data, world.prompts[:8], 0))


@fault(
    "captions of other pictures", threads="PixArt-sigma 114", gate="smoke/prompt-effect", code="SK0503", stage="smoke"
)
def captions_mixed(world: World) -> list[GateResult]:
    data = world.base_data
    mixed = replace(data, first=data.first.roll(len(data) // 2), count=data.count.roll(len(data) // 2))
    return run_gates("smoke", prompt_gains(world.base, mixed))


PROMPT_WEIGHTS = torch.tensor([0.02, 0.04, 0.09, 0.25, 0.6])  # of the noise levels, as on tiny-sana


def prompt_gains(system: LatentDiffusion, data: LatentDataset) -> dict[str, Any]:
    """Of a system judged against itself."""
    gain = conditional_gain(system, data, count=len(data), weights=PROMPT_WEIGHTS).numpy()
    return {"prompt_gain": gain, "base_prompt_gain": gain}


@fault(
    "NaN loss trained on",
    threads="mosaicml/diffusion drop_nans; Sana 65",
    gate="training step",
    code="SK0501",
    stage="smoke",
)
def nan_loss(world: World) -> list[GateResult]:
    system, data = world.small_system()
    bad = replace(data, latents=data.latents.clone().index_fill(0, torch.tensor([5]), float("nan")))
    options = replace(OPTIONS, batch_size=len(data))
    fit(system, bad, options, new_state(system.core, everything(system), options), until=1)
    return []


def full_evidence(start: LatentDiffusion, end: LatentDiffusion, data: LatentDataset, base: HeldOut) -> dict[str, Any]:
    """What stage full measures of a run that should have kept the base's quality, in the base's own latents."""
    before, after = (held_out(system, data, count=len(data)) for system in (start, end))
    own = base.losses.mean(0).numpy()
    return {
        "start_losses": before.losses.mean(0).numpy(),
        "end_losses": after.losses.mean(0).numpy(),
        "relative_error": after.losses.mean(0).numpy() / own.mean(),
        "base_relative_error": own / own.mean(),
    }


def without_head(system: LatentDiffusion) -> LatentDiffusion:
    """The system as a swap starts it whose output layer begins anew."""
    start = copy.copy(system)
    start.core = copy.deepcopy(system.core)
    with torch.no_grad():
        start.core.proj_out.weight.mul_(0)
    return start


def trained_on(world: World, start: LatentDiffusion, steps: int, **changes: Any) -> tuple[LatentDiffusion, Any]:
    system = copy.copy(start)
    system.core = copy.deepcopy(start.core)
    options = replace(OPTIONS, **changes)
    state = new_state(system.core, everything(system), options)
    fit(system, world.base_data, options, state, until=steps)
    return system, state


@fault(
    "learning rate far too high: what was known is lost",
    gate="full/progress",
    code="SK0502",
    stage="full",
)
def too_fast(world: World) -> list[GateResult]:
    end, _ = trained_on(world, world.base, 4, learning_rate=0.03)
    base = held_out(world.base, world.base_data, count=len(world.base_data))
    return run_gates("full", full_evidence(world.base, end, world.base_data, base))


@fault(
    "average far slower than the run: what is written is nearly the start",
    gate="full/quality",
    code="SK0504",
    stage="full",
)
def slow_average(world: World) -> list[GateResult]:
    start = without_head(world.base)
    end, state = trained_on(world, start, 12, ema_decay=0.98)
    end.core.load_state_dict(state.ema)
    base = held_out(world.base, world.base_data, count=len(world.base_data))
    return run_gates("full", full_evidence(start, end, world.base_data, base))


@fault(
    "timesteps of 0 to 1 given to a core that learnt 0 to 1000",
    gate="full/samples",
    code="SK0507",
    stage="full",
)
def timesteps(world: World) -> list[GateResult]:
    broken = copy.copy(world.base)
    broken.timestep_scale = 1.0
    return run_gates("full", sample_evidence(broken, world.base_data, world.prompts[:8], 0))


# --- resuming --------------------------------------------------------------------------------------------------------


def saved(world: World, name: str, facts: dict[str, Any]) -> tuple[Path, LatentDiffusion, Any]:
    _, system, state = trained(world, steps=2)
    folder = world.fresh(name)
    save_checkpoint(folder, system.core, state, facts)
    found = latest(folder)
    assert found
    return found, system, state


FACTS = {"train.learning_rate": 1e-3, "train.batch_size": 16, "pictures": "a"}


@fault("learning rate changed by resuming", threads="Automodel 763, 3883", gate="resume", code="SK0505", stage="full")
def other_rate(world: World) -> list[GateResult]:
    folder, system, state = saved(world, "rate", FACTS)
    load_checkpoint(folder, system.core, state, FACTS | {"train.learning_rate": 2e-3})
    return []


@fault(
    "batch size changed by resuming: the order of the data moves",
    threads="accelerate 2016; llm-foundry 1277",
    gate="resume",
    code="SK0505",
    stage="full",
)
def other_batch(world: World) -> list[GateResult]:
    folder, system, state = saved(world, "batch", FACTS)
    load_checkpoint(folder, system.core, state, FACTS | {"train.batch_size": 8})
    return []


@fault("EMA missing from the checkpoint", threads="PixArt-sigma 156", gate="resume", code="SK0505", stage="full")
def ema_lost(world: World) -> list[GateResult]:
    folder, system, state = saved(world, "ema", FACTS)
    (folder / "ema.safetensors").unlink()
    load_checkpoint(folder, system.core, state, FACTS)
    return []


@fault(
    "checkpoint cut short by a crash",
    threads="accelerate, Sana latest.pth, Automodel 3254, KempnerForge 102",
    gate="resume",
    code="SK0505",
    stage="full",
)
def cut(world: World) -> list[GateResult]:
    folder, system, state = saved(world, "cut", FACTS)
    weights = (folder / "core.safetensors").read_bytes()
    (folder / "core.safetensors").write_bytes(weights[: len(weights) // 2])
    load_checkpoint(folder, system.core, state, FACTS)
    return []


@fault(
    "a wrapper trains a copy: nothing that is saved moves",
    threads="speculators 765",
    gate="training step",
    code="SK0508",
    stage="full",
)
def copy_trained(world: World) -> list[GateResult]:
    start, _, _ = trained(world, steps=1)
    digests = train.parameter_digests(start.core)
    check_movement(start.core, digests)
    return []


# --- clean systems ---------------------------------------------------------------------------------------------------

Clean = tuple[str, Callable[[World], list[GateResult]]]


def clean_systems() -> list[Clean]:
    """Systems that nothing is wrong with: every geometry, both kinds, from names, folders and other pictures."""
    vaes = ["dc-f16c16", "dc-f16c32", "kl-f8c4", "pca-f8c4", "pca-f16c16", "pca-f16c32", "pca-f32c64"]
    systems: list[Clean] = [(f"VAE {n}", lambda w, n=n: judged_vae(w, w.vae(n))) for n in vaes]
    systems += [(f"VAE {n} from a folder", lambda w, n=n: judged_vae(w, from_folder(w, n))) for n in vaes[1:5]]
    systems += [
        (f"VAE {n} on the training half", lambda w, n=n: judged_vae(w, w.vae(n), train_half(w))) for n in vaes[:4]
    ]
    systems += [
        (f"VAE PCA f{ratio}c{channels}, fitted here", lambda w, r=ratio, c=channels: judged_vae(w, fitted(w, r, c)))
        for ratio, channels in ((8, 8), (8, 16), (16, 8), (16, 24), (16, 64))
    ]
    systems += [(f"VAE {n} at {s} px", lambda w, n=n, s=s: judged_vae(w, w.vae(n), at_size(w, s))) for n, s in (("kl-f8c4", 64), ("pca-f16c32", 128))]  # fmt: skip
    encoders = ["minilm", "wordllama"]
    systems += [(f"text encoder {n}", lambda w, n=n: judged_text(w, w.encoder(n))) for n in encoders]
    systems += [
        (f"text encoder {n} on emoji names", lambda w, n=n: judged_text(w, w.encoder(n), emoji_names()))
        for n in encoders
    ]
    systems += [
        ("text encoder wordllama beside minilm", lambda w: judged_swap(w, w.encoder("wordllama"), "minilm")),
        ("text encoder minilm beside wordllama", lambda w: judged_swap(w, w.encoder("minilm"), "wordllama")),
        ("text encoder minilm from a folder", lambda w: judged_text(w, minilm_folder(w))),
        ("text encoder minilm with an instruction", lambda w: judged_text(w, instructed(w, "minilm"))),
        ("text encoder wordllama with an instruction", lambda w: judged_text(w, instructed(w, "wordllama"))),
        ("text encoder tiny BERT", lambda w: judged_text(w, untrained("minilm"), letters())),
        ("text encoder tiny table", lambda w: judged_text(w, untrained("wordllama"), letters())),
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


def train_half(world: World) -> Tensor:
    return to_images(load_pictures("embedded").split(False).subset(range(world.count)).pixels(SIZE))


def at_size(world: World, size: int) -> Tensor:
    return to_images(world.pictures.pixels(size))


def fitted(world: World, ratio: int, channels: int) -> VAE:
    pixels = load_pictures("embedded").split(False).subset(range(400)).pixels(SIZE)
    return PCAVAE.fit(torch.from_numpy(pixels).permute(0, 3, 1, 2), ratio, channels)


def emoji_names() -> list[str]:
    """Short ones: names of flags and families are longer than an encoder of the embedded world reads."""
    names = [c[0] for c in load_pictures("openmoji").split(True).captions]
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
    evidence |= sample_evidence(base, data, world.prompts[:8], 0)
    evidence |= prompt_gains(base, data)
    return run_gates("smoke", evidence)


def small_trained(world: World) -> list[GateResult]:
    start, system, state = trained(world, steps=8)
    evidence = movement_evidence(start.core, system.core, state.ema)
    evidence |= course_evidence(system, world.dataset(system), OPTIONS)
    return run_gates("smoke", evidence)
