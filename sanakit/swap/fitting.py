"""What `auto` stands for in the training section: precision by the device, checkpointing and micro-batch by its free
memory."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from sanakit.config import Config
from sanakit.distributed import world_size
from sanakit.placement import FUSED, Placement
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.settings import options_of, parts_of
from sanakit.training.batches import TrainOptions
from sanakit.vaes import VAE

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

SHARE = 0.85  # of the free memory that a training state may take; the rest is the allocator's, and what was not counted
WORTHWHILE = 8  # images that go through the core at once: beyond, a device gains little
AVERAGE = 0.98  # any decay: a race keeps an average of the weights, whatever the configuration says

Peak = Callable[[bool, int], int]  # (gradient checkpointing, micro-batch) -> bytes


def resolved(config: Config, placement: Placement, peak: Callable[[Config], Peak] | None) -> Config:
    """The configuration with values in the place of `auto`. peak: what a training state of the configuration needs,
    asked only on an accelerator that tells its free memory; None where there is no core. On the CPU: fp32, no
    checkpointing, the batch in `train.accumulate` parts. A VAE or text encoder that is trained has no estimate: on such
    an accelerator its images go through one at a time."""
    train = config.train
    changes: dict[str, Any] = {"precision": placement.train_precision(train.precision)}
    images = max(1, train.batch_size // world_size())
    whole = max(1, images // parts_of(train.model_copy(update={"micro_batch": "auto"}), images))
    chosen, micro = train.gradient_checkpointing, train.micro_batch
    memory = placement.memory() if "auto" in (chosen, micro) else None
    if memory is not None and not trains_core_alone(config):
        chosen = config.train.target == "core" if chosen == "auto" else chosen
        micro = 1 if micro == "auto" else micro
    elif memory is not None and peak is not None:
        section = train.model_copy(update=changes | {"gradient_checkpointing": False})
        needs = peak(config.model_copy(update={"train": section}))
        chosen, micro = fitting(needs, SHARE * memory[0], whole, checkpointing=chosen, micro_batch=micro)
    changes["gradient_checkpointing"] = chosen is True
    changes["micro_batch"] = whole if micro == "auto" else micro
    return config.model_copy(update={"train": train.model_copy(update=changes)})


def trains_core_alone(config: Config) -> bool:
    """Whether a step trains no VAE and no text encoder: the estimate knows cores only."""
    return not config.trains_vae_alone and config.text_encoder.learning_rate is None


def fitting(
    needs: Peak, room: float, whole: int, *, checkpointing: bool | str = "auto", micro_batch: int | str = "auto"
) -> tuple[bool, int]:
    """Checkpointing and micro-batch for `room` bytes: none and a worthwhile micro-batch where they fit, else
    checkpointing and the largest that fits; one image with checkpointing where nothing does. Whatever is stated
    stays."""
    sizes = [whole // n for n in range(1, whole + 1) if whole % n == 0] if micro_batch == "auto" else [int(micro_batch)]
    choices = [False, True] if checkpointing == "auto" else [bool(checkpointing)]
    for choice in choices:
        last = choice == choices[-1]
        for size in sizes:
            if (last or size >= min(WORTHWHILE, whole) or micro_batch != "auto") and needs(choice, size) <= room:
                return choice, size
    return choices[-1], sizes[-1]


def peak_of(swap: "Swap") -> Callable[[Config], Peak] | None:
    """What training every layer of the swap's core needs, with an average of its weights, from the dry run's estimate:
    no strategy needs more. None for a component alone."""
    if swap.bare:
        return None

    def of(config: Config) -> Peak:
        from sanakit.training.estimate import estimate, fake_core

        base, candidate = swap.base_system, swap.candidate
        vae = candidate if isinstance(candidate, VAE) else base.vae
        encoder = base.text_encoder if isinstance(candidate, VAE) else candidate
        core, mode = fake_core(
            dict(base.core.config),
            latents=vae.spec if vae is not base.vae else None,
            text=encoder.spec if encoder is not base.text_encoder else None,
            base_ratio=base.vae.spec.spatial_compression_ratio,
            image_size=base.image_size,
        )
        strategy = STRATEGIES.get("finetune")

        @cache
        def peak(checkpointing: bool, micro_batch: int) -> int:
            return estimate(
                core,
                mode,
                strategy,
                cut(options_of(config, strategy), checkpointing, micro_batch, world_size()),
                latent_shape=vae.spec.shape(base.image_size, base.image_size),
                caption_length=encoder.spec.max_tokens,
                world_size=world_size(),
                fused_attention=swap.placement.device.type in FUSED,
            ).peak

        return peak

    return of


def cut(options: TrainOptions, checkpointing: bool, micro_batch: int, ranks: int) -> TrainOptions:
    """The options with a step of at most two micro-batches of such a size, which need as much memory as all of them:
    the second one finds the gradients of the first."""
    parts = min(2, max(1, options.batch_size // ranks // micro_batch))
    return replace(
        options,
        gradient_checkpointing=checkpointing,
        batch_size=micro_batch * ranks * parts,
        accumulate=parts,
        ema_decay=AVERAGE,
    )
