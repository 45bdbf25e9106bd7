"""Text encoders learnt from the base instead of from data: prompts only.

`distill`: through the frozen core (arXiv 2503.19897), |DiT(x_t, teacher's prompt) - DiT(x_t, student's prompt)|^2 along
the base's own trajectories. A state x_t with the teacher's velocity v there is the training pair latents = x_t - sigma
v, noise = x_t + (1 - sigma) v, whose interpolation at sigma is x_t and whose velocity is v: the ordinary loop trains
it. `embedding-mse`: the caption layers' output against the base's, token by token; no core in the loop, the cheap
baseline.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor
from torch.nn import functional as F

from sanakit.alignment.text import Captions, mean_tokens
from sanakit.alignment.tokens import pair_tokens
from sanakit.assembly import LatentDiffusion, core_at_work
from sanakit.data.dataset import LatentDataset
from sanakit.data.job import first_of_each
from sanakit.data.live import CaptionRows
from sanakit.flow import shift_sigmas
from sanakit.text_encoders import PromptEmbeds
from sanakit.training.loop import Batch, TrainOptions

PROMPTS, NUM_STEPS, CHUNK = (
    512,
    8,
    64,
)  # trajectories of the teacher and their states: at most 4,096 passes of the base, once
FEWEST = 16
COMPARED = 16_384  # texts by which both sides are told to read the same
NULL_EVERY = 10  # trajectories to one of the null prompt
EMBEDDING_STEPS, EMBEDDING_BATCH, EMBEDDING_RATE = 300, 128, 1e-3


@dataclass(frozen=True)
class States:
    """noisy, velocity (K, C, h, w), sigmas (K,), captions (K,): rows of the data set's captions, -1 the null prompt."""

    noisy: Tensor
    velocity: Tensor
    sigmas: Tensor
    captions: Tensor

    def __len__(self) -> int:
        return len(self.sigmas)


@dataclass(kw_only=True)
class Teacher:
    """The base drawing what the captions of `data` say, in its own embeddings."""

    base: LatentDiffusion
    data: LatentDataset
    seed: int = 0
    states: States | None = None  # drawn once, when a strategy asks
    seconds: float = 0.0  # that they took

    def draws(
        self, system: LatentDiffusion, data: LatentDataset, options: TrainOptions
    ) -> Callable[[int, slice], Batch]:
        """What `fit` draws its batches with: states of the teacher, prompts of the student; from (seed, step) alone.

        A short run needs no more trajectories than it has states to draw.
        """
        if self.states is None:
            prompts = min(PROMPTS, max(FEWEST, options.max_steps * options.batch_size // NUM_STEPS))
            start = time.perf_counter()
            self.states = trajectories(self.base, self.data.captions, prompts=prompts, seed=self.seed)
            self.seconds = time.perf_counter() - start
        states = self.states
        said = translations(self.data.texts, data.texts)

        def draw(step: int, rows: slice) -> Batch:
            generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
            chosen = torch.randint(len(states), (options.batch_size,), generator=generator)[rows]
            noisy, velocity, sigmas = (t[chosen] for t in (states.noisy, states.velocity, states.sigmas))
            level = sigmas.reshape(-1, 1, 1, 1)
            captions = states.captions[chosen]
            if said is not None:
                captions = said.draw(captions, torch.randint(1 << 30, (options.batch_size,), generator=generator)[rows])
            prompt = captions_of(system, data.captions, captions)
            return Batch(noisy - level * velocity, noisy + (1 - level) * velocity, sigmas, prompt)

        return draw


@dataclass(frozen=True)
class Translations:
    """Which captions of the candidate say what one of the base's says. group: (N,) of every caption; rows: captions,
    sorted by their group; starts, sizes: of every group in `rows`."""

    group: Tensor
    rows: Tensor
    starts: Tensor
    sizes: Tensor

    def draw(self, captions: Tensor, choice: Tensor) -> Tensor:
        """In the place of captions of the base (K,) one of the candidate's that says the same, number `choice` modulo
        how many do; -1, the null prompt, stays."""
        group = self.group[captions.clamp_min(0)]
        drawn = self.rows[self.starts[group] + choice % self.sizes[group]]
        return torch.where(captions < 0, captions, drawn)


def translations(base_texts: Sequence[str], texts: Sequence[str]) -> Translations | None:
    """None where both sides read the same: then a trajectory belongs to its own caption."""
    if list(base_texts[:COMPARED]) == list(texts[:COMPARED]):
        return None
    _, group = first_of_each(base_texts)
    sizes = torch.bincount(group)
    return Translations(group, group.argsort(stable=True), sizes.cumsum(0) - sizes, sizes)


def captions_of(system: LatentDiffusion, captions: CaptionRows, rows: Tensor) -> PromptEmbeds:
    """Captions by row, -1 the system's null prompt."""
    known = captions[rows.clamp_min(0)]
    return system.drop_prompts(PromptEmbeds(known.embeds.float(), known.mask), rows < 0)


def trajectories(
    base: LatentDiffusion, captions: CaptionRows, *, prompts: int = PROMPTS, num_steps: int = NUM_STEPS, seed: int = 0
) -> States:
    """Euler from noise to an image's latents under `prompts` captions, every state with the base's velocity there."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(captions), (prompts,), generator=generator)
    rows[::NULL_EVERY] = -1
    levels = shift_sigmas(torch.linspace(1, 0, num_steps + 1), float(base.flow_shift or 1.0))
    states: list[States] = []
    with core_at_work(base):
        for part in rows.split(CHUNK):
            prompt = captions_of(base, captions, part).map(base.placement.put)
            noisy = base.placement.put(torch.randn(len(part), *base.latent_shape, generator=generator))
            for now, after in itertools.pairwise(levels):
                velocity = base.velocity(noisy, now.expand(len(part)), prompt)
                states.append(States(noisy.cpu(), velocity.cpu(), now.expand(len(part)), part))
                noisy = noisy + (after - now).item() * velocity
    return States(*(torch.cat([getattr(f, n) for f in states]) for n in ("noisy", "velocity", "sigmas", "captions")))


def embedding_mse(
    core: SanaTransformer2DModel,
    base_core: SanaTransformer2DModel,
    captions: Captions,
    *,
    steps: int = EMBEDDING_STEPS,
    seed: int = 0,
) -> dict[str, object]:
    """Train the caption layers to the base's normed caption features, paired tokens or mean tokens; returns the loss
    relative to the features' power, before and after."""
    layers = [*core.caption_projection.parameters(), *core.caption_norm.parameters()]
    optimizer = torch.optim.AdamW(layers, lr=EMBEDDING_RATE)
    generator = torch.Generator().manual_seed(seed)
    total = min(len(captions.candidate), *(len(s) for s in captions.spans or ()), len(captions.base))
    losses: list[Tensor] = []
    for step in range(steps):
        rows = torch.randint(total, (EMBEDDING_BATCH,), generator=generator)
        loss = _feature_loss(core, base_core, captions, rows)
        for group in optimizer.param_groups:
            group["lr"] = EMBEDDING_RATE * min(1.0, (step + 1) / 20) * (1 - step / steps)
        grads = torch.autograd.grad(loss, layers, allow_unused=True)
        for parameter, grad in zip(layers, grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        losses.append(loss.detach())
    for parameter in layers:
        parameter.grad = None
    values = torch.stack(losses).tolist()  # the host waits once, at the end
    tail = values[-20:]
    return {"embedding_mse": [round(values[0], 4), round(sum(tail) / len(tail), 4)]}


def _feature_loss(
    core: SanaTransformer2DModel, base_core: SanaTransformer2DModel, captions: Captions, rows: Tensor
) -> Tensor:
    device = next(core.caption_projection.parameters()).device
    parts = captions.candidate[rows], captions.base[rows]
    candidate, base = (part.map(partial(torch.Tensor.to, device=device)) for part in parts)
    with torch.no_grad():
        goals = base_core.caption_norm(base_core.caption_projection(base.embeds.float()))
    features = core.caption_norm(core.caption_projection(candidate.embeds.float()))
    if captions.paired_spans is None:
        features, goals = mean_tokens(features, candidate.mask), mean_tokens(goals, base.mask)
    else:
        masks = (part.mask for part in parts)
        shares = pair_tokens(*(side[rows] for side in captions.paired_spans), *masks).to(device)
        paired = shares.sum(2) > 0
        features, goals = features[paired], torch.einsum("blm,bme->ble", shares, goals)[paired]
    return F.mse_loss(features, goals) / goals.square().mean()
