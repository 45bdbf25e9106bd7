"""Faults of the system: training and sampling."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from fault_world import World, fault

from sanakit.assembly import LatentDiffusion
from sanakit.checks import run_gates
from sanakit.checks.measure_training import (
    SPREAD_SAMPLES,
    base_evidence,
    course_evidence,
    movement_evidence,
    sample_evidence,
)
from sanakit.contracts import GateResult
from sanakit.data.dataset import LatentDataset
from sanakit.evaluation.blind import conditional_gain
from sanakit.evaluation.held_out import HeldOut, held_out
from sanakit.text_encoders import PromptEmbeds
from sanakit.training import batches
from sanakit.training import loop as train
from sanakit.training.loop import TrainOptions, fit, new_state


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
    """Trained with every token visible, on images whose word stands behind the place where the mask ends."""
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
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


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
    sample_sigmas = batches.sample_sigmas
    with patched(
        batches,
        "sample_sigmas",
        lambda count, *, shift, generator: sample_sigmas(count, shift=1.0, generator=generator),
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
    return run_gates("smoke", sample_evidence(system, world.base_data, world.prompts[:SPREAD_SAMPLES], 0))


@fault("captions of other images", threads="PixArt-sigma 114", gate="smoke/prompt-effect", code="SK0503", stage="smoke")
def captions_mixed(world: World) -> list[GateResult]:
    data = world.base_data
    mixed = replace(data, first=data.first.roll(len(data) // 2), count=data.count.roll(len(data) // 2))
    return run_gates("smoke", prompt_gains(world.base, mixed))


PROMPT_WEIGHTS = torch.tensor([0.02, 0.04, 0.09, 0.25, 0.6])  # of the noise levels, as on tiny-sana


def prompt_gains(system: LatentDiffusion, data: LatentDataset) -> dict[str, Any]:
    """Of a system evaluated against itself."""
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
    base_losses = base.losses.mean(0).numpy()
    return {
        "start_losses": before.losses.mean(0).numpy(),
        "end_losses": after.losses.mean(0).numpy(),
        "relative_error": after.losses.mean(0).numpy() / base_losses.mean(),
        "base_relative_error": base_losses / base_losses.mean(),
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
    return run_gates("full", sample_evidence(broken, world.base_data, world.prompts[:SPREAD_SAMPLES], 0))
