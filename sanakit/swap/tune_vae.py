"""Fine-tune a VAE so that its latents turn and scale with the image (EQ-VAE, arXiv 2502.09509).

loss = |x - D(E(x))| + w |T x - D(T E(x))|, T a quarter turn and a smaller size, one of each a step. A latent space that
obeys is easier to model; what it costs in reconstruction is measured and gated. Normalisation is measured anew at the
end, because nothing in the loss holds the scale of the latents.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.assembly import evaluating
from sanakit.checks.diffusability import takes
from sanakit.contracts import LatentStats
from sanakit.errors import SanakitError
from sanakit.evaluation.reconstruction import psnr
from sanakit.ranks.sharing import shared_chunks
from sanakit.swap.full_steps import decide_steps
from sanakit.swap.journal import Journal, go_on_from
from sanakit.swap.resume import resume_facts
from sanakit.swap.settings import options_of, strategy_of
from sanakit.swap.tuning import CHUNK, FLOOR_DB, TrainingImages, held_images, trained_vae, write_tuned
from sanakit.training.loop import descend, new_state
from sanakit.training.monitors import Monitors, component_stream
from sanakit.training.parameters import parameter_digests
from sanakit.training.state import park
from sanakit.vaes import VAE

if TYPE_CHECKING:
    from sanakit.swap.context import Swap


@dataclass(frozen=True)
class TurnedImages:
    """A step's images (B, 3, H, W) in [-1, 1], quarter turns, and the smaller side in latents."""

    images: Tensor
    turns: int
    side: int

    def map(self, change: Any) -> "TurnedImages":
        return TurnedImages(change(self.images), self.turns, self.side)

    def split(self, parts: int) -> "list[TurnedImages]":
        return [TurnedImages(x, self.turns, self.side) for x in self.images.chunk(parts)]


class Reconstruction(nn.Module):
    """Both terms as one forward pass, so that DDP sees every parameter once."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, turns: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Plain error, error of the transformed latents, raw latents."""
        raw = self.vae._encode(images)
        plain = F.l1_loss(self.vae._decode(raw), images)
        moved = transformed(raw, turns, side)
        target = transformed(images, turns, side * self.vae.spec.spatial_compression_ratio)
        return plain, F.l1_loss(self.vae._decode(moved), target), raw


def transformed(x: Tensor, turns: int, side: int) -> Tensor:
    """A quarter turn `turns` times, and a smaller square; (B, C, h, h)."""
    x = torch.rot90(x, turns, (2, 3))
    return x if side == x.shape[-1] else F.interpolate(x, (side, side), mode="bilinear", antialias=True)


def turned(images: Tensor, step: int, seed: int, cells: int) -> TurnedImages:
    """The step's transformation of its images, from (seed, step) alone; never the identity."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    turns = int(torch.randint(4, (), generator=generator))
    smallest = max(1, cells // 2)
    sizes = range(smallest, cells + 1 if turns else max(smallest + 1, cells))
    side = sizes[int(torch.randint(len(sizes), (), generator=generator))]
    return TurnedImages(images, turns, side)


@torch.no_grad()
def equivariance_errors(vae: VAE, images: Tensor) -> np.ndarray:
    """|E(T x) - T E(x)|^2 over the variance of E(x), mean of a quarter turn and half size, per image; of the quarter
    turn alone for a VAE of one image size. (N,)"""
    raw = shared_chunks(images, CHUNK, vae.encode_raw)
    unit, errors = raw.var(), []
    for turns, share in ((1, 1.0), (0, 0.5)):
        cells = max(1, int(raw.shape[-1] * share))
        moved = transformed(images, turns, cells * vae.spec.spatial_compression_ratio)
        if takes(vae, moved.shape[-2:]):
            other = shared_chunks(moved, CHUNK, vae.encode_raw)
            errors.append((other - transformed(raw, turns, cells)).square().mean((1, 2, 3)) / unit)
    return torch.stack(errors).mean(0).numpy()


def tune_vae(swap: "Swap") -> dict[str, Any]:
    """Train to train.max_steps and write RUN/vae; returns the evidence of the gates `tune/...`."""
    swap.config = decide_steps(swap.config, {}, run_dir=str(swap.run.path))
    candidate, images = trained_vae(swap), held_images(swap)
    vae = deepcopy(candidate)
    with swap.placement.holding(candidate):
        before = measured(candidate, images)
    train_vae(swap, candidate, vae, images)
    vae.requires_grad_(False).eval()
    with swap.placement.holding(vae):
        restate(vae, images)
        after = measured(vae, images)
    write_tuned(swap, vae)
    return {
        "psnr_before": before[0] - FLOOR_DB,
        "psnr_after": after[0],
        "equivariance_before": before[1],
        "equivariance_after": after[1],
    }


def train_vae(swap: "Swap", candidate: VAE, vae: VAE, images: Tensor) -> None:
    """From the start, or where an earlier run stopped, to the last step; `vae` then holds the trained weights,
    averaged where an average is kept.

    candidate: the VAE as it came. vae: the copy that is trained. images: held-out ones, (N, 3, H, W) in [-1, 1]. Raises
    SK0104 for a VAE without parameters.
    """
    config = swap.config
    options = options_of(config, strategy_of(config, {}))
    stream = TrainingImages(swap, options)
    model, cells = Reconstruction(vae), vae.spec.shape(*images.shape[-2:])[-1]
    untouched = parameter_digests(model)
    group = {"params": reached(model, images[:1], cells, vae), "scale": 1.0, "name": "vae"}
    state = new_state(model, [group], options, placement=swap.placement)
    facts = resume_facts(swap, "vae")
    checkpoints = go_on_from(swap, state, options, facts)
    with swap.placement.holding(candidate):
        reference = torch.cat([candidate.encode(part) for part in images.split(CHUNK)])
    every = max(1, options.max_steps // config.monitors.num_evaluations)
    component = component_stream(config.monitors, "VAE", every, reference)
    journal = VaeJournal(
        swap=swap,
        name="vae",
        options=options,
        state=state,
        checkpoints=checkpoints,
        facts=facts,
        untouched=untouched,
        monitors=Monitors(config.monitors, component=component, device=vae.latents_mean.device),
        failures=stream.failures,
        candidate=candidate,
        vae=vae,
        images=images,
    )

    def draw(step: int) -> TurnedImages:
        return turned(stream.draw(step), step, options.seed, cells)

    def objective(part: TurnedImages) -> tuple[Tensor, Tensor, TurnedImages]:
        assert state.model is not None
        plain, moved, raw = state.model(part.images, part.turns, part.side)
        return plain + config.vae.equivariance * moved, raw, part

    after_step, rate, watch = journal.after_step, journal.rate, journal.watch
    journal.run(lambda: descend(draw, objective, options, state, after_step=after_step, rate=rate, watch=watch))
    if state.ema is not None:
        model.load_state_dict(state.ema)
    park(state)


@dataclass(kw_only=True)
class VaeJournal(Journal):
    """What the steps of a VAE leave behind: its latents beside those of the VAE as it came, and how well it does on
    held-out images. Fields as in `train_vae`."""

    candidate: VAE
    vae: VAE
    images: Tensor

    def observe(self, parts: list[TurnedImages], raw: Tensor) -> None:
        if (component := self.monitors.component) is not None:
            component.observe(self.candidate.normalize(raw[: component.wanted]))

    def evaluate(self, step: int) -> None:
        readings = self.monitors.report(step)
        request = self.monitors.act(readings)
        self.record_readings(readings, step)
        peak, errors = measured(self.vae, self.images)
        row = {"stage": "full", "strategy": self.name, "step": step, "by_sigma": None}
        values = {"psnr": float(peak.mean()), "equivariance_error": float(errors.mean())}
        train = row | {"split": "train", "loss": float(np.mean(self.losses))}
        self.losses = []
        self.record("metrics.jsonl", [train, row | {"split": "vae"} | values])
        self.trackers.log(values, step)
        if request:
            raise request


def measured(vae: VAE, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """PSNR and equivariance error of every image, in eval mode: as the VAE will be used."""
    with evaluating(vae):
        reconstructed = shared_chunks(images, CHUNK, lambda part: vae.decode_raw(vae.encode_raw(part)))
        return psnr(images, reconstructed), equivariance_errors(vae, images)


def reached(model: Reconstruction, images: Tensor, cells: int, vae: VAE) -> list[nn.Parameter]:
    """The parameters that an image reaches; the others stay frozen. Raises SK0104 where there are none."""
    vae.requires_grad_(True)
    plain, moved, _ = model(images, 1, max(1, cells // 2))
    if not plain.requires_grad:
        raise SanakitError("SK0104", f"{vae.name or 'this VAE'} has no parameter to train: it is a closed form")
    (plain + moved).backward()
    for parameter in vae.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    return [p for p in vae.parameters() if p.requires_grad]


@torch.no_grad()
def restate(vae: VAE, images: Tensor) -> None:
    """Normalisation measured on images, in the convention that the VAE had: one factor, or mean and std a channel."""
    raw = shared_chunks(images, CHUNK, vae.encode_raw)
    old = vae.stats
    if len(set(old.mean)) == len(set(old.std)) == 1:
        # one factor for all: normalised latents get unit width, the shift stays
        width = float(vae.normalize(raw).std())
        vae.set_stats(LatentStats(mean=old.mean, std=tuple(s * width for s in old.std)))
        return
    vae.set_stats(LatentStats(mean=tuple(raw.mean((0, 2, 3)).tolist()), std=tuple(raw.std((0, 2, 3)).tolist())))
