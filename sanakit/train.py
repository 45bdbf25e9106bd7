"""The training loop: one readable function over cached latents and embeddings.

Batch order, noise, sigmas, caption choice and prompt dropout are functions of (seed, step) alone: a resumed run
repeats nothing, and strategies that race see the same pictures, sigmas and (at equal latent shape) noise.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sanakit.assembly import LatentDiffusion
from sanakit.data.cache import LatentDataset
from sanakit.errors import SanakitError
from sanakit.flow import interpolate, sample_sigmas, velocity_loss
from sanakit.text_encoders import PromptEmbeds


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """learning_rate: peak. warmup: steps. decay: cosine to zero at max_steps, else constant."""

    max_steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 20
    decay: bool = True
    max_grad_norm: float = 1.0
    prompt_dropout: float = 0.1
    seed: int = 0
    ema_decay: float = 0.0  # 0 keeps no average


@dataclass(frozen=True)
class Batch:
    latents: Tensor  # (B, C, h, w)
    noise: Tensor
    sigmas: Tensor  # (B,)
    prompt: PromptEmbeds


@dataclass
class TrainState:
    """What a checkpoint holds beside the core."""

    step: int
    optimizer: torch.optim.Optimizer
    ema: dict[str, Tensor] | None = None


def draw_batch(system: LatentDiffusion, data: LatentDataset, options: TrainOptions, step: int) -> Batch:
    """The batch of a step, from (seed, step) alone; an epoch visits every picture once."""
    indices = batch_indices(len(data), options.batch_size, step, options.seed)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    count = len(indices)
    sigmas = sample_sigmas(count, shift=float(system.flow_shift or 1.0), generator=generator)
    view = torch.randint(data.latents.shape[1], (count,), generator=generator)
    choice = torch.randint(1 << 30, (count,), generator=generator)
    drop = torch.rand(count, generator=generator) < options.prompt_dropout
    latents = data.latents[indices, view]
    noise = torch.randn(latents.shape, generator=generator)
    return Batch(latents, noise, sigmas, system.drop_prompts(data.prompts(indices, choice), drop))


def batch_indices(total: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Picture indices of a step: consecutive slices of one permutation an epoch, across epoch borders."""
    start = step * batch_size
    parts, needed = [], batch_size
    while needed:
        epoch, offset = divmod(start, total)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed * 7_919 + epoch))
        parts.append(order[offset : offset + needed])
        start += len(parts[-1])
        needed -= len(parts[-1])
    return torch.cat(parts)


def learning_rate_at(step: int, options: TrainOptions) -> float:
    """Linear warm-up, then cosine to zero (or constant)."""
    warm = min(1.0, (step + 1) / max(1, options.warmup))
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / options.max_steps)) if options.decay else 1.0
    return options.learning_rate * warm * cosine


def new_state(core: nn.Module, groups: list[dict], options: TrainOptions) -> TrainState:
    """AdamW over parameter groups; a group's `scale` multiplies the learning rate."""
    optimizer = torch.optim.AdamW(
        groups, lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.99), fused=True
    )
    ema = {k: v.detach().clone() for k, v in core.state_dict().items()} if options.ema_decay else None
    return TrainState(step=0, optimizer=optimizer, ema=ema)


def fit(
    system: LatentDiffusion,
    data: LatentDataset,
    options: TrainOptions,
    state: TrainState,
    *,
    until: int | None = None,
    after_step: Callable[[int, float, Batch, Tensor], None] = lambda step, loss, batch, predicted: None,
    rate: Callable[[int, TrainOptions], float] = learning_rate_at,
) -> TrainState:
    """Train from state.step to `until` (max_steps). Raises SK0501 before a step with a loss that is not finite."""
    core = system.core
    core.train()
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    for step in range(state.step, options.max_steps if until is None else until):
        learning_rate = rate(step, options)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("scale", 1.0)

        batch = draw_batch(system, data, options, step)
        noisy = interpolate(batch.latents, batch.noise, batch.sigmas)
        predicted = system.velocity(noisy, batch.sigmas, batch.prompt)
        loss = velocity_loss(predicted, batch.latents, batch.noise).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, options.max_grad_norm)
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm.item())):
            raise SanakitError("SK0501", f"loss {value}, gradient norm {norm.item()} at step {step}")
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)

        state.step = step + 1
        if state.ema is not None:
            update_ema(state.ema, core, min(options.ema_decay, (1 + step) / (10 + step)))
        after_step(state.step, value, batch, predicted.detach())
    return state


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], core: nn.Module, decay: float) -> None:
    pairs = [(ema[name], value) for name, value in core.state_dict().items() if value.is_floating_point()]
    averages: Iterable[Tensor] = [a for a, _ in pairs]
    torch._foreach_lerp_(list(averages), [v for _, v in pairs], 1 - decay)
