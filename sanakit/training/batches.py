"""What a step of training is given: its options, and its batch from (seed, step) alone.

Order, views, captions, dropout, sigmas and noise depend on nothing else, so that any number of ranks, threads and
resumes see the same, and strategies that race see the same images, sigmas and (at equal latent shape) noise.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import itemgetter

import torch
from torch import Tensor

from sanakit.assembly import LatentDiffusion
from sanakit.data.dataset import LatentDataset, row_noise
from sanakit.data.order import batch_indices, bucket_batch_indices
from sanakit.distributed import DATA_STOP, STOP, rank, world_size
from sanakit.flow import sample_sigmas, shift_sigmas
from sanakit.text_encoders import PromptEmbeds

POSTERIOR = 0x5DEECE66  # sets a posterior's seed apart from the noise's; of 32 bits, as a CPU generator reads no more


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """learning_rate: peak. warmup: steps. schedule: a name of sanakit.training.schedules.

    batch_size: images of a step over all ranks and micro-batches; accumulate: micro-batches of a rank.
    max_skipped: steps with a loss or gradient that is not finite that may be left out before the run stops.
    """

    max_steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 20
    schedule: str = "cosine"  # or "constant-then-decay", "constant"
    max_grad_norm: float = 1.0
    prompt_dropout: float = 0.1
    sigmas: str = "logit-normal"  # or "uniform"
    seed: int = 0
    ema_decay: float = 0.0  # 0 keeps no average
    accumulate: int = 1
    precision: str = "fp32"  # or "bf16", "fp16": autocast; weights, gradients and optimiser stay in fp32
    parallel: str = "ddp"  # or "fsdp", where there are several ranks
    gradient_checkpointing: bool = False
    max_skipped: int = 0
    optimizer: str = "adamw"  # a name of sanakit.training.optimizers
    compile: bool = False  # the core, by torch.compile
    kernels: str = "off"  # or "triton": linear attention and mix-FFN by sanakit's kernels
    workers: int = 1  # threads that draw batches ahead; 0 draws in the loop
    live_captions: bool = False  # a batch brings its captions too, for a text encoder that is trained


@dataclass(frozen=True)
class Batch:
    latents: Tensor  # (B, C, h, w)
    noise: Tensor
    sigmas: Tensor  # (B,)
    prompt: PromptEmbeds
    indices: Tensor | None = None  # (B,) rows of the data set
    texts: tuple[str, ...] = ()  # of B, dropped prompts empty; where the text encoder is trained too

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        prompt = PromptEmbeds(change(self.prompt.embeds), change(self.prompt.mask))
        indices = None if self.indices is None else change(self.indices)
        return Batch(change(self.latents), change(self.noise), change(self.sigmas), prompt, indices, self.texts)

    def split(self, parts: int) -> "list[Batch]":
        size = len(self.latents) // parts
        slices = [slice(i * size, (i + 1) * size) for i in range(parts)]
        return [replace(self.map(itemgetter(rows)), texts=self.texts[rows]) for rows in slices]


def draw_batch(
    system: LatentDiffusion, data: LatentDataset, options: TrainOptions, step: int, rows: slice = slice(None)
) -> Batch:
    """The batch of a step (or `rows` of it), from (seed, step) alone; an epoch visits every image once."""
    if data.members:
        indices = bucket_batch_indices(data.members, options.batch_size, step, options.seed)
    else:
        indices = batch_indices(len(data), options.batch_size, step, options.seed)
    count, shift = len(indices), float(system.flow_shift or 1.0)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    if options.sigmas == "uniform":
        sigmas = shift_sigmas(torch.rand(count, generator=generator), shift)
    else:
        sigmas = sample_sigmas(count, shift=shift, generator=generator)
    view = torch.randint(data.latents.shape[1], (count,), generator=generator)
    choice = torch.randint(1 << 30, (count,), generator=generator)
    drop = torch.rand(count, generator=generator) < options.prompt_dropout
    seeds = torch.randint(1 << 62, (count,), generator=generator)  # an image's noise does not depend on its rank
    latents = data.draw(indices[rows], view[rows], generator, seeds[rows] ^ POSTERIOR)
    noise = row_noise(latents, generator, seeds[rows])
    prompt = system.drop_prompts(data.prompts(indices[rows], choice[rows]), drop[rows])
    texts: tuple[str, ...] = ()
    if options.live_captions:  # as the text encoder reads them; the null prompt has no instruction
        captions = [data.texts[row] for row in data.caption_rows(indices[rows], choice[rows]).tolist()]
        whole_prompts = zip(system.text_encoder.whole_prompts(captions), drop[rows].tolist(), strict=True)
        texts = tuple("" if gone else text for text, gone in whole_prompts)
    return Batch(latents, noise, sigmas[rows], prompt, indices[rows], texts)


def draw_by(
    data: LatentDataset | None, options: TrainOptions, draw: Callable[[int, slice], Batch]
) -> Callable[[int], Batch]:
    """This rank's batch of a step; where too many images of the data cannot be read the loop stops, with all ranks, at
    the next step border. draw: rows of a step's batch."""
    rows = own_rows(options)

    def batch_of(step: int) -> Batch:
        batch = draw(step, rows)
        if data is not None and data.failures.too_many:
            STOP.ask(DATA_STOP)
        return batch

    return batch_of


def own_rows(options: TrainOptions) -> slice:
    """This rank's part of every batch."""
    share = options.batch_size // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def joined(parts: list[Batch]) -> Batch:
    """Micro-batches as one batch, without gradients."""
    if len(parts) == 1 and not parts[0].prompt.embeds.requires_grad:
        return parts[0]
    prompt = PromptEmbeds(
        torch.cat([p.prompt.embeds.detach() for p in parts]), torch.cat([p.prompt.mask for p in parts])
    )

    def both(name: str) -> Tensor:
        return torch.cat([getattr(p, name) for p in parts])

    texts = tuple(text for p in parts for text in p.texts)
    indices = None if parts[0].indices is None else both("indices")
    return Batch(both("latents"), both("noise"), both("sigmas"), prompt, indices, texts)


def blame_of(data: LatentDataset, batch: Batch) -> str:
    """The images whose own latents or prompts are not finite, if any."""
    if batch.indices is None:
        return ""
    bad = ~(batch.latents.isfinite().flatten(1).all(1) & batch.prompt.embeds.isfinite().flatten(1).all(1))
    names = [data.names[i] for i in batch.indices[bad].tolist()]
    return f"; not finite in the data: {', '.join(names[:3])}" if names else "; the data of the step is finite"
