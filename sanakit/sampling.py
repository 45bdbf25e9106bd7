"""Samplers: Euler as one flat function, and the multistep schedulers of diffusers, all with the system's flow shift."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from sanakit.assembly import LatentDiffusion, core_at_work
from sanakit.errors import SanakitError, did_you_mean
from sanakit.flow import shift_sigmas
from sanakit.ranks.sharing import shared
from sanakit.text_encoders import PromptEmbeds

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
TIMESTEPS = 1000  # of diffusers' schedulers: timestep = 1000 sigma, without what follows the point


def euler(shift: float) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def dpm(shift: float) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ of second order (arXiv 2211.01095) for flows, as Sana's published pipelines sample."""
    return DPMSolverMultistepScheduler(flow_shift=shift, **FLOW)


def unipc(shift: float) -> UniPCMultistepScheduler:
    """UniPC of second order (arXiv 2302.04867) for flows."""
    return UniPCMultistepScheduler(flow_shift=shift, **FLOW)


SCHEDULERS: dict[str, Callable[[float], Any]] = {"euler": euler, "dpm++": dpm, "unipc": unipc}


def new_scheduler(name: str, flow_shift: float) -> Any:
    """A scheduler of diffusers by its name here. Raises SK0104 for another name."""
    if name not in SCHEDULERS:
        known = ", ".join(SCHEDULERS)
        raise SanakitError("SK0104", f"no scheduler {name!r}{did_you_mean(name, [*SCHEDULERS])}; known: {known}")
    return SCHEDULERS[name](flow_shift)


def sample_euler(
    system: LatentDiffusion,
    prompt: PromptEmbeds,
    *,
    num_steps: int = 24,
    guidance_scale: float = 3.0,
    seed: int = 0,
    noise: Tensor | None = None,
) -> Tensor:
    """Euler steps of dx/dsigma = velocity from sigma 1 to 0, classifier-free guidance; latents (B, C, h, w) on the CPU.

    noise: (B, C, h, w) to start from, in place of what `seed` draws. Noise and prompts go to the device once, latents
    come back once.
    """
    if noise is None:
        noise = start_noise(system, len(prompt), seed)
    sigmas = shift_sigmas(torch.linspace(1, 0, num_steps + 1), float(system.flow_shift or 1.0))
    put = system.placement.put
    with core_at_work(system):
        x, both = put(noise), with_null(system, prompt)
        for level, step in zip(put(sigmas), (sigmas[1:] - sigmas[:-1]).tolist(), strict=False):
            x = x + step * guided(system, x, level, both, guidance_scale)
    return x.cpu()


def sample_scheduled(
    system: LatentDiffusion,
    prompt: PromptEmbeds,
    *,
    scheduler: str,
    num_steps: int = 24,
    guidance_scale: float = 3.0,
    seed: int = 0,
) -> Tensor:
    """As `sample_euler`, with the steps and the timesteps of a scheduler of diffusers: what its pipelines draw."""
    steps = new_scheduler(scheduler, float(system.flow_shift or 1.0))
    steps.set_timesteps(num_steps)
    put = system.placement.put
    with core_at_work(system):
        x, both = put(start_noise(system, len(prompt), seed)), with_null(system, prompt)
        for timestep, level in zip(steps.timesteps, put(steps.timesteps / TIMESTEPS), strict=True):
            velocity = guided(system, x, level, both, guidance_scale)
            x = steps.step(velocity, timestep, x, return_dict=False)[0]
    return x.cpu()


def start_noise(system: LatentDiffusion, count: int, seed: int) -> Tensor:
    """(B, C, h, w), drawn on the CPU so that every device starts alike."""
    return torch.randn((count, *system.latent_shape), generator=torch.Generator().manual_seed(seed))


def with_null(system: LatentDiffusion, prompt: PromptEmbeds) -> PromptEmbeds:
    """(2B, L, D) on the device: the prompts, then the null prompt, which travels as one row."""
    put, count = system.placement.put, len(prompt)
    null = system.drop_prompts(prompt, torch.ones(count, dtype=torch.bool))
    return PromptEmbeds(
        torch.cat([put(prompt.embeds).float(), put(null.embeds[:1]).float().expand(count, -1, -1)]),
        torch.cat([put(prompt.mask), put(null.mask[:1]).expand(count, -1)]),
    )


def guided(system: LatentDiffusion, x: Tensor, level: Tensor, both: PromptEmbeds, guidance_scale: float) -> Tensor:
    """The velocity under classifier-free guidance, (B, C, h, w); at scale 1 the prompt's own, in half the time. level:
    sigma, a scalar on the device."""
    if guidance_scale == 1:
        return system.velocity(x, level.expand(len(x)), both[: len(x)])
    with_prompt, without = system.velocity(torch.cat([x, x]), level.expand(2 * len(x)), both).chunk(2)
    return without + guidance_scale * (with_prompt - without)


def require_finite(images: Tensor) -> None:
    """Raises SK0507 where an image that was drawn is not finite: as bytes it would be black."""
    if not images.isfinite().all():
        number = int((~images.isfinite()).flatten(1).any(1).sum())
        raise SanakitError(
            "SK0507",
            f"{number} of {len(images)} images that were drawn are not finite",
            cause="The core or the decoder gives values that are no numbers: weights, scale, precision or guidance.",
        )


def sample_side_by_side(
    systems: dict[str, LatentDiffusion], prompts: dict[str, list[str]], *, seed: int
) -> dict[str, Tensor]:
    """`sample_images` of every system by its label, each for its own wording of the same prompts, with the same noise;
    ranks of a run share the systems."""

    def draw(labels: Sequence[str]) -> list[Tensor]:
        return [sample_images(systems[label], prompts[label], seed=seed) for label in labels]

    labels = list(systems)
    return dict(zip(labels, shared(labels, draw), strict=True))


def sample_images(system: LatentDiffusion, prompts: list[str], *, scheduler: str = "euler", **options: float) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] for prompts. scheduler: a key of SCHEDULERS. options: num_steps, guidance_scale
    and seed. Raises SK0104 for another scheduler, SK0307 for what is no list of texts."""
    new_scheduler(scheduler, 1.0)  # refused before anything is computed
    with system.placement.holding(system.text_encoder):
        embeddings = system.text_encoder.encode(prompts)
    if scheduler == "euler":
        latents = sample_euler(system, embeddings, **options)  # type: ignore[arg-type]
    else:
        latents = sample_scheduled(system, embeddings, scheduler=scheduler, **options)  # type: ignore[arg-type]
    with system.placement.holding(system.vae):
        return system.vae.decode(latents)
