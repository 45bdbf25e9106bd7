"""Train the decoder of a VAE while its encoder is frozen: better images from the latents that a core knows already.

loss = |x - D(z)| + p d(x, D(z)) + h |H x - H D(z)|, z the latents of x, d the distance of perceptual features, H what a
blur takes away. The latents stay bit-equal, and a gate checks their digest: core, caches and null embeddings stay
valid.
"""

import json
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.assembly import evaluating
from sanakit.core.dit import load_core, save_core
from sanakit.errors import SanakitError
from sanakit.evaluation.decoded import Distance, high_frequencies, perceptual_term
from sanakit.evaluation.image_features import PACKAGED, THUMBNAIL, load_features
from sanakit.evaluation.perceptual import extractor
from sanakit.evaluation.reconstruction import kernel_distances, psnr
from sanakit.folders import from_anywhere
from sanakit.formats.pipeline_folder import save_null
from sanakit.hashing import hash_tensors
from sanakit.loading import load_base_encoder
from sanakit.ranks.sharing import shared_chunks
from sanakit.swap.full_steps import decide_steps
from sanakit.swap.journal import Journal, go_on_from
from sanakit.swap.resume import resume_facts
from sanakit.swap.settings import options_of, strategy_of
from sanakit.swap.tuning import CHUNK, FLOOR_DB, TrainingImages, held_images, trained_vae, write_tuned
from sanakit.training.loop import descend, new_state
from sanakit.training.monitors import Monitors
from sanakit.training.parameters import parameter_digests
from sanakit.training.state import park
from sanakit.vaes import VAE
from sanakit.vaes.kept import KeptLatents, encoder_hash

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

FIGURES = ("psnr", "perceptual_distance", "high_frequency_error")
KID_FEATURES = {"kid_efflite0": PACKAGED, "kid_colours": THUMBNAIL}


@dataclass(frozen=True)
class Images:
    """A step's images (B, 3, H, W) in [-1, 1]."""

    images: Tensor

    def map(self, change: Any) -> "Images":
        return Images(change(self.images))

    def split(self, parts: int) -> "list[Images]":
        return [Images(part) for part in self.images.chunk(parts)]


class Decoder(nn.Module):
    """The decoder as one forward pass, so that DDP sees every parameter once."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, raw_latents: Tensor) -> Tensor:
        return self.vae._decode(raw_latents)


def tune_decoder(swap: "Swap") -> dict[str, Any]:
    """Train to train.max_steps; write RUN/vae and, of the base's own VAE, RUN/model. Returns the evidence of the gates
    `tune/...`."""
    config = swap.config = decide_steps(swap.config, {}, run_dir=str(swap.run.path))
    candidate, images = trained_vae(swap), held_images(swap)
    distance = perceptual_term(config.vae.perceptual_features, swap.placement.device)
    vae = deepcopy(candidate)
    with swap.placement.holding(candidate, extractor()):
        before, digest = measured(candidate, images, distance), latents_digest(candidate, images)
    names = train_decoder(swap, candidate, vae, images, distance, before)
    vae.requires_grad_(False).eval()
    with swap.placement.holding(vae, extractor()):
        after, digest_after = measured(vae, images, distance), latents_digest(vae, images)
    decoder = tuple(sorted({*names, *(candidate.kept.decoder if candidate.kept else ())}))
    vae.kept = KeptLatents(
        fingerprint=candidate.fingerprint(), decoder=decoder, encoder=encoder_hash(candidate, decoder)
    )
    write_tuned(swap, vae)
    if config.vae.name is None and not swap.bare:
        write_base(swap)
    return {
        "psnr_before": before["psnr"] - FLOOR_DB,
        "psnr_after": after["psnr"],
        "perceptual_before": before["perceptual_distance"],
        "perceptual_after": after["perceptual_distance"],
        "latents_digest_before": digest,
        "latents_digest_after": digest_after,
    }


def train_decoder(
    swap: "Swap", candidate: VAE, vae: VAE, images: Tensor, distance: Distance, before: dict[str, np.ndarray]
) -> list[str]:
    """From the start, or where an earlier run stopped, to the last step; `vae` then holds the trained weights, averaged
    where an average is kept. Returns the names of the decoder's parameters in the model.

    candidate: the VAE as it came, which encodes. images: held-out ones, (N, 3, H, W) in [-1, 1]. before: `measured` of
    the candidate on them. Raises SK0104 for a VAE without a decoder of its own.
    """
    config = swap.config
    options = options_of(config, strategy_of(config, {}))
    stream, model = TrainingImages(swap, options), Decoder(vae)
    untouched = parameter_digests(model)
    trained = decoder_parameters(vae, images[:1])
    group = {"params": list(trained.values()), "scale": 1.0, "name": "vae decoder"}
    state = new_state(model, [group], options, placement=swap.placement)
    facts = resume_facts(swap, "vae-decoder")
    checkpoints = go_on_from(swap, state, options, facts)
    journal = DecoderJournal(
        swap=swap,
        name="vae decoder",
        options=options,
        state=state,
        checkpoints=checkpoints,
        facts=facts,
        untouched=untouched,
        monitors=Monitors(config.monitors, device=vae.latents_mean.device),
        failures=stream.failures,
        vae=vae,
        images=images,
        distance=distance,
    )
    if state.step == 0:
        journal.record_figures(before, 0)

    def draw(step: int) -> Images:
        return Images(stream.draw(step))

    def objective(part: Images) -> tuple[Tensor, Tensor, Images]:
        assert state.model is not None
        decoded, x = state.model(candidate.encode_raw(part.images)), part.images
        loss = F.l1_loss(decoded, x)
        if config.vae.perceptual:
            loss = loss + config.vae.perceptual * distance(x, decoded).mean()
        if config.vae.high_frequency:
            loss = loss + config.vae.high_frequency * F.l1_loss(high_frequencies(decoded), high_frequencies(x))
        return loss, decoded, part

    after_step, rate, watch = journal.after_step, journal.rate, journal.watch
    with swap.placement.holding(candidate):
        journal.run(lambda: descend(draw, objective, options, state, after_step=after_step, rate=rate, watch=watch))
    if state.ema is not None:
        # the average of a weight that stands still may differ from it in the sign of a zero
        model.load_state_dict({f"vae.{name}": state.ema[f"vae.{name}"] for name in trained}, strict=False)
    park(state)
    return [name.removeprefix("model.") for name in trained]


def decoder_parameters(vae: VAE, images: Tensor) -> dict[str, nn.Parameter]:
    """By name, those that decoding reaches and encoding does not; the others stay frozen. Raises SK0104 where there are
    none."""
    with torch.no_grad():
        raw = vae._encode(vae.placed(images))
    vae.requires_grad_(True)
    reached = []
    for output in (lambda: vae._decode(raw), lambda: vae._encode(vae.placed(images))):
        values = output()
        if values.requires_grad:
            values.square().mean().backward()
        reached.append({name for name, p in vae.named_parameters() if p.grad is not None})
        vae.zero_grad(set_to_none=True)
    names = reached[0] - reached[1]
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(name in names)
    if not names:
        raise SanakitError(
            "SK0104", f"{vae.name or 'this VAE'} has no parameter of a decoder alone: it is a closed form"
        )
    return {name: p for name, p in vae.named_parameters() if name in names}


@torch.no_grad()
def measured(vae: VAE, images: Tensor, distance: Distance) -> dict[str, np.ndarray]:
    """FIGURES of every image (N,), and what it adds to the KID of the reconstructions in KID_FEATURES, whose mean the
    KID is; in eval mode: as the VAE will be used. Without EffLite0's package its KID is left out."""
    with evaluating(vae):
        reconstructed = shared_chunks(images, CHUNK, lambda part: vae.decode_raw(vae.encode_raw(part)))
    parts = list(zip(images.split(CHUNK), reconstructed.split(CHUNK), strict=True))
    values = (
        np.concatenate([psnr(*pair) for pair in parts]),
        torch.cat([distance(*pair).cpu() for pair in parts]).numpy(),
        torch.cat([_high_frequency_error(*pair) for pair in parts]).numpy(),
    )
    return dict(zip(FIGURES, values, strict=True)) | _kernel_distances(parts)


def latents_digest(vae: VAE, images: Tensor) -> str:
    """Of the raw latents of images, bit by bit, with the normalisation."""
    raw = shared_chunks(images, CHUNK, vae.encode_raw)
    return hash_tensors({"raw": raw, "mean": vae.latents_mean, "std": vae.latents_std})


def write_base(swap: "Swap") -> None:
    """RUN/model: the base as it is, with the new VAE in its card."""
    folder, base = swap.run.path / "model", swap.base
    save_core(load_core(base.folder), folder)
    save_null(load_base_encoder(base.card["text_encoder"], base.folder), folder)
    card = {key: value for key, value in base.card.items() if key not in ("curve", "scaling_factor")} | {
        "recipe": f"sanakit, the decoder of {base.card['vae']} trained for {swap.config.train.steps} steps",
        "seed": swap.config.train.seed,
        "base": from_anywhere(base.name),
        "embedded": base.embedded,
        "vae": from_anywhere(f"path:{swap.run.path / 'vae'}"),
        "text_encoder": from_anywhere(base.card["text_encoder"]),
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


@dataclass(kw_only=True)
class DecoderJournal(Journal):
    """What the steps of a decoder leave behind: how well it does on held-out images."""

    vae: VAE
    images: Tensor
    distance: Distance

    def evaluate(self, step: int) -> None:
        row = {"stage": "full", "strategy": self.name, "step": step, "by_sigma": None}
        self.record("metrics.jsonl", [row | {"split": "train", "loss": float(np.mean(self.losses))}])
        self.losses = []
        self.record_figures(measured(self.vae, self.images, self.distance), step)

    def record_figures(self, figures: dict[str, np.ndarray], step: int) -> None:
        values = {name: float(each.mean()) for name, each in figures.items()}
        row = {"stage": "full", "strategy": self.name, "step": step, "by_sigma": None, "split": "vae"}
        self.record("metrics.jsonl", [row | values])
        self.trackers.log(values, step)


def _kernel_distances(parts: list[tuple[Tensor, Tensor]]) -> dict[str, np.ndarray]:
    """`kernel_distances` (N,) of images and reconstructions by the names of KID_FEATURES. parts: pairs of batches."""
    distances = {}
    for figure, name in KID_FEATURES.items():
        if name == PACKAGED and extractor() is None:
            continue
        features = load_features(name)
        sides = [torch.cat([features.compute(pair[side]).cpu() for pair in parts]) for side in (0, 1)]
        distances[figure] = kernel_distances(*sides)
    return distances


def _high_frequency_error(images: Tensor, reconstructed: Tensor) -> Tensor:
    """Mean absolute error of the high frequencies of every image. (N,)"""
    return (high_frequencies(images) - high_frequencies(reconstructed)).abs().mean((1, 2, 3))
