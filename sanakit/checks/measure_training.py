"""What gates of stage smoke read of a system's wiring: does the base work, do training and sampling agree."""

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sanakit.assembly import LatentDiffusion
from sanakit.data.dataset import LatentDataset
from sanakit.evaluation.held_out import HeldOut, held_out
from sanakit.ranks.sharing import shared
from sanakit.sampling import sample_euler
from sanakit.text_encoders import PromptEmbeds
from sanakit.training.loop import TrainOptions, draw_batch

DRAWN = 4096  # sigmas behind the shift of training: their median knows it to 2%, whatever the batch size
FEWEST_STEPS = 8
SPREAD_SAMPLES = 32  # prompts that tell how wide samples are: of 8 the interval of the median reaches .7
PROBED = 64  # held-out images where nobody says how many
STUCK_BELOW = 1e-12


def base_evidence(base: LatentDiffusion, data: LatentDataset, evaluated: HeldOut | None = None) -> dict[str, Any]:
    """Loss of the base against a linear guess, and with every token visible; evaluated: its held-out result, if at
    hand."""
    count = min(len(data), evaluated.losses.shape[1] if evaluated else PROBED)
    evaluated = evaluated or held_out(base, data, count=count)
    rows = torch.arange(count)
    prompt = data.evaluation_prompts(rows)
    visible = LatentDataset(
        names=data.names[:count],
        latents=data.latents[rows],
        captions=PromptEmbeds(prompt.embeds, torch.ones_like(prompt.mask)),
        first=rows,
        count=torch.ones_like(rows),
    )
    unmasked = held_out(base, visible, count=count)
    return {
        "base_losses": evaluated.losses.mean(0).numpy()[:count],
        "linear_losses": linear_losses(data.latents[:count, 0], evaluated.sigmas),
        "masked_losses": evaluated.losses.mean(0).numpy()[:count],
        "unmasked_losses": unmasked.losses.mean(0).numpy(),
    }


def linear_losses(latents: Tensor, sigmas: Iterable[float]) -> np.ndarray:
    """Expected loss of the best `velocity = c * noisy`, one c a sigma for all images, per image. (N,)"""
    power = latents.square().mean((1, 2, 3)).double().numpy()
    losses = []
    for sigma in sigmas:
        keep, mean = 1 - sigma, power.mean()
        c = (sigma - keep * mean) / (keep**2 * mean + sigma**2)
        losses.append((1 - c * sigma) ** 2 + (1 + c * keep) ** 2 * power)
    return np.mean(losses, 0)


def course_evidence(system: LatentDiffusion, data: LatentDataset, options: TrainOptions) -> dict[str, Any]:
    """Images and sigmas that training draws, against an epoch and against the sampler's own sigmas."""
    steps = max(FEWEST_STEPS, -(-DRAWN // options.batch_size))
    batches = [draw_batch(system, data, options, step, slice(0, options.batch_size)) for step in range(steps)]
    drawn = torch.cat([b.indices for b in batches if b.indices is not None])
    trained = torch.cat([b.sigmas for b in batches])
    return {
        "distinct_share": len(drawn.unique()) / min(len(data), len(drawn)),
        "train_shift": implied_shift(trained),
        "sample_shift": implied_shift(sampled_sigmas(system)),
    }


def implied_shift(sigmas: Tensor) -> float:
    """The shift that moves a median of 1/2 to where it is: logit-normal, uniform and even steps all have it there."""
    middle = float(sigmas.clamp(1e-4, 1 - 1e-4).quantile(0.5))
    return middle / (1 - middle)


def sampled_sigmas(system: LatentDiffusion) -> Tensor:
    """The sigmas at which the sampler asks the core, seen from the core's side; the end points are left out."""
    seen: list[float] = []

    def velocity(noisy: Tensor, sigmas: Tensor, prompt: PromptEmbeds) -> Tensor:
        seen.append(float(sigmas[0]))
        return torch.zeros_like(noisy)

    with replaced(system, "velocity", velocity):
        sample_euler(system, system.null, num_steps=40)
    return torch.tensor(seen[1:])


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Any:
    """An attribute of the instance, removed again afterwards."""
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


def movement_evidence(start: nn.Module, core: nn.Module, average: dict[str, Tensor] | None) -> dict[str, Any]:
    """Which parameters moved since `start`, and how far the average followed; adapters that were added are left out."""
    before, stuck, strayed = dict(start.named_parameters()), [], []
    way = followed = 0.0
    for name, now in core.named_parameters():
        old = before.get(name.replace(".base_layer.", "."))
        if old is None or old.shape != now.shape:
            continue
        # wherever either of them was trained
        mine, theirs = now.detach().float().cpu(), old.detach().float().cpu()
        moved = float((mine - theirs).norm())
        if now.requires_grad and moved <= STUCK_BELOW:
            stuck.append(name)
        if not now.requires_grad and moved > STUCK_BELOW:
            strayed.append(name)
        if average is not None and now.requires_grad:
            way += moved**2
            followed += float((average[name].float().cpu() - theirs).norm()) ** 2
    evidence: dict[str, Any] = {"stuck_parameters": stuck, "strayed_parameters": strayed}
    if average is not None and way:
        evidence["average_moved"] = (followed / way) ** 0.5
    return evidence


def sample_evidence(
    system: LatentDiffusion, data: LatentDataset, prompts: list[str], seed: int, *, at_once: int = 8
) -> dict[str, Any]:
    """Spread of every sampled latent over that of the data, without guidance, which widens by design. prompts:
    SPREAD_SAMPLES of them, drawn in batches of `at_once`, which the ranks of a run share."""
    with system.placement.holding(system.text_encoder):
        encoded = system.text_encoder.encode(prompts)

    def draw_batches(starts: Sequence[int]) -> list[Tensor]:
        return [
            sample_euler(system, encoded[start : start + at_once], guidance_scale=1.0, seed=seed + start)
            for start in starts
        ]

    latents = torch.cat(shared(range(0, len(prompts), at_once), draw_batches))
    spread = data.latents[:PROBED, 0].std((1, 2, 3)).mean()
    return {"sample_spread": (latents.std((1, 2, 3)) / spread).clamp(1e-6, 1e6).nan_to_num(1e6).numpy()}
