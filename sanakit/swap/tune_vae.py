"""Fine-tune a VAE so that its latents turn and scale with the image (EQ-VAE, arXiv 2502.09509).

loss = |x - D(E(x))| + w |T x - D(T E(x))|, T a quarter turn and a smaller size, one of each a step. A latent space that
obeys is easier to model; what it costs in reconstruction is measured and gated. Normalisation is measured anew at the
end, because nothing in the loss holds the scale of the latents.
"""

import shutil
import sys
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.assembly import evaluating
from sanakit.checks.component import psnr
from sanakit.contracts import LatentStats
from sanakit.data.cache import to_images
from sanakit.data.order import batch_indices
from sanakit.distributed import barrier, exit_code
from sanakit.errors import SanakitError
from sanakit.interop.export import save_vae
from sanakit.swap.resume import pick_up, resume_facts, watched
from sanakit.swap.settings import flat_config, options_of, strategy_of
from sanakit.training.checkpoint import Saver, checkpoint_bytes, preflight
from sanakit.training.loop import TrainOptions, descend, new_state, own_rows
from sanakit.training.monitors import Monitors, component_stream
from sanakit.training.parameters import check_movement, parameter_digests
from sanakit.training.schedules import decay_start, learning_rate_at, saves_at
from sanakit.training.state import park
from sanakit.training.tracking import Trackers
from sanakit.training.watch import Watch
from sanakit.vaes import VAE

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

CHUNK = 32
FLOOR_DB = 1.0  # of PSNR that equivariance may cost


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


def draw_images(swap: "Swap", options: TrainOptions, step: int, cells: int) -> TurnedImages:
    """The step's images (of this rank) and its transformation, from (seed, step) alone; never the identity."""
    train = swap.splits[0]
    indices = batch_indices(len(train), options.batch_size, step, options.seed)[own_rows(options)]
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    turns = int(torch.randint(4, (), generator=generator))
    smallest = max(1, cells // 2)
    sizes = range(smallest, cells + 1 if turns else max(smallest + 1, cells))
    side = sizes[int(torch.randint(len(sizes), (), generator=generator))]
    return TurnedImages(to_images(train.subset(indices.tolist()).pixels(swap.config.data.image_size)), turns, side)


@torch.no_grad()
def equivariance_errors(vae: VAE, images: Tensor) -> np.ndarray:
    """|E(T x) - T E(x)|^2 over the variance of E(x), mean of a quarter turn and half size, per image. (N,)"""
    raw = torch.cat([vae.encode_raw(part) for part in images.split(CHUNK)])
    unit, errors = raw.var(), torch.zeros(len(images))
    for turns, share in ((1, 1.0), (0, 0.5)):
        cells = max(1, int(raw.shape[-1] * share))
        moved = transformed(images, turns, cells * vae.spec.spatial_compression_ratio)
        other = torch.cat([vae.encode_raw(part) for part in moved.split(CHUNK)])
        errors += (other - transformed(raw, turns, cells)).square().mean((1, 2, 3)) / unit / 2
    return errors.numpy()


def tune_vae(swap: "Swap") -> dict[str, Any]:
    """Train to train.max_steps and write RUN/vae; returns the evidence of the gates `tune/...`."""
    config, held = swap.config, swap.splits[1]
    if not isinstance(swap.candidate, VAE):
        raise SanakitError("SK0104", "train.target vae needs a VAE")
    if config.train.parallel == "fsdp":
        raise SanakitError("SK0104", "train.target vae does not go with train.parallel fsdp", fix="Use ddp.")
    vae = deepcopy(swap.candidate)
    images = to_images(
        held.subset(list(range(min(config.component.num_images, len(held))))).pixels(config.data.image_size)
    )
    with swap.placement.holding(swap.candidate):
        before = measured(swap.candidate, images)
    tuning = Tuning(swap, swap.candidate, vae, images)
    untouched = parameter_digests(tuning.model)
    tuning.start()
    barrier()
    if tuning.state.stopped:
        steps = f"{tuning.state.step} of {tuning.options.max_steps}"
        print(f"stopped at step {steps}, saved in {tuning.checkpoints}", file=sys.stderr)
        sys.exit(exit_code(tuning.state.stopped))
    check_movement(tuning.model, untouched)
    if tuning.state.ema is not None:
        tuning.model.load_state_dict(tuning.state.ema)
    park(tuning.state)
    vae.requires_grad_(False).eval()
    with swap.placement.holding(vae):
        restate(vae, images)
        after = measured(vae, images)
    folder = swap.run.path / "vae"
    shutil.rmtree(folder, ignore_errors=True)
    save_vae(vae, folder, stock=False)
    return {
        "psnr_before": before[0] - FLOOR_DB,
        "psnr_after": after[0],
        "equivariance_before": before[1],
        "equivariance_after": after[1],
    }


class Tuning:
    """A run that trains a VAE: its model, state and checkpoints, and what every step records.

    candidate: the VAE as it came. vae: the copy that is trained. images: held-out ones, (N, 3, H, W) in [-1, 1].
    Raises SK0104 for a VAE without parameters, SK0505 for checkpoints of another run,
    SK0903 where the disk is too small.
    """

    def __init__(self, swap: "Swap", candidate: VAE, vae: VAE, images: Tensor) -> None:
        config, run = swap.config, swap.run
        self.swap, self.candidate, self.vae, self.images = swap, candidate, vae, images
        self.options = options_of(config, strategy_of(config, {}))
        self.model = Reconstruction(vae)
        self.cells = vae.spec.shape(*images.shape[-2:])[-1]
        group = {"params": reached(self.model, images[:1], self.cells, vae), "scale": 1.0, "name": "vae"}
        self.state = new_state(self.model, [group], self.options, placement=swap.placement)
        self.facts, self.checkpoints = resume_facts(swap, "vae"), run.path / "checkpoints"

    def start(self) -> None:
        """Train from the latest checkpoint, or from the beginning, until max_steps or a signal."""
        swap, config, options, state = self.swap, self.swap.config, self.options, self.state
        pick_up(self.checkpoints, swap.resume, state, self.facts)
        for row in state.history:
            swap.run.append(row["file"], [row["row"]])
        branch = decay_start(options.schedule, options.max_steps)
        preflight(self.checkpoints, checkpoint_bytes(self.model, state), always=branch)
        with swap.placement.holding(self.candidate):
            reference = torch.cat([self.candidate.encode(part) for part in self.images.split(CHUNK)])
        self.evaluate_every = max(1, options.max_steps // config.monitors.num_evaluations)
        component = component_stream(config.monitors, "VAE", self.evaluate_every, reference)
        self.monitors = Monitors(config.monitors, component=component)
        self.monitors.restore(state.extras)
        self.trackers = Trackers(config.train.report_to, swap.run.path, flat_config(config))
        self.saver = Saver(self.checkpoints, asynchronous=config.train.async_checkpoints, always=branch)
        self.watch = Watch(self.checkpoints.resolve().parent / ".ranks", config.train.hang_timeout)
        try:
            watched(self.descend, state, self.monitors, self.saver, self.facts)
            if state.stopped and not saves_at(state.step, options, config.train.checkpoint_every):
                self.save()
        finally:
            self.watch.close()
            self.saver.close()
            self.trackers.close()

    def descend(self) -> None:
        descend(
            self.draw,
            self.objective,
            self.options,
            self.state,
            after_step=self.after_step,
            rate=self.rate,
            watch=self.watch,
        )

    def draw(self, step: int) -> TurnedImages:
        return draw_images(self.swap, self.options, step, self.cells)

    def rate(self, step: int, options: TrainOptions) -> float:
        return self.monitors.factor * learning_rate_at(step, options)

    def objective(self, part: TurnedImages) -> tuple[Tensor, Tensor, TurnedImages]:
        assert self.state.model is not None
        plain, moved, raw = self.state.model(part.images, part.turns, part.side)
        return plain + self.swap.config.vae.equivariance * moved, raw, part

    def record(self, file: str, rows: list[dict[str, Any]]) -> None:
        self.swap.run.append(file, rows)
        self.state.history += [{"file": file, "row": row} for row in rows]

    def save(self) -> None:
        self.state.extras = self.monitors.tensors()
        self.saver.save(self.model, self.state, self.facts)

    def after_step(self, step: int, loss: float, parts: list[TurnedImages], raw: Tensor) -> None:
        component = self.monitors.component
        self.swap.progress("training the VAE", step, self.options.max_steps)
        if step - 1 in self.state.skipped:
            self.record("ledger.jsonl", [{"name": f"step {step - 1}", "reason": f"loss {loss}: step left out"}])
        elif component is not None:
            component.observe(self.candidate.normalize(raw[: component.wanted]))
        if step % self.evaluate_every == 0:
            self.evaluate(step, loss)
        if saves_at(step, self.options, self.swap.config.train.checkpoint_every):
            self.save()

    def evaluate(self, step: int, loss: float) -> None:
        """Measure on the held-out images, record, and raise what an alarm asks for."""
        now = measured(self.vae, self.images)
        readings = self.monitors.report(step)
        request = self.monitors.act(readings)
        self.record("readings.jsonl", [r.as_dict() | {"stage": "full"} for r in readings])
        base = {"stage": "full", "strategy": "vae", "step": step, "by_sigma": None}
        values = {"psnr": float(now[0].mean()), "equivariance_error": float(now[1].mean())}
        self.record("metrics.jsonl", [base | {"split": "train", "loss": loss}, base | {"split": "vae"} | values])
        self.trackers.log({"train/loss": loss} | values | {f"monitor/{r.name}": r.value for r in readings}, step)
        if request:
            raise request


def measured(vae: VAE, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """PSNR and equivariance error of every image, in eval mode: as the VAE will be used."""
    with evaluating(vae):
        reconstructed = torch.cat([vae.decode_raw(vae.encode_raw(part)) for part in images.split(CHUNK)])
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
    raw = torch.cat([vae.encode_raw(part) for part in images.split(CHUNK)])
    old = vae.stats
    if len(set(old.mean)) == len(set(old.std)) == 1:
        # one factor for all: normalised latents get unit width, the shift stays
        width = float(vae.normalize(raw).std())
        vae.set_stats(LatentStats(mean=old.mean, std=tuple(s * width for s in old.std)))
        return
    vae.set_stats(LatentStats(mean=tuple(raw.mean((0, 2, 3)).tolist()), std=tuple(raw.std((0, 2, 3)).tolist())))
