"""What a run will need, before it runs: parameters, memory of a rank, images and tokens of a step, checkpoint size.

The core is built of fake tensors (no memory, no weights on disk), a step's forward and backward pass go through its
real modules, and every storage is counted while it is alive (live_bytes.py). Blocks are alike, so cores of two and
three blocks are traced and what the third one adds is counted for the others. Not counted: the VAE and text encoder (a
cache serves them), the device's own context, allocator fragmentation, kernels' scratch memory.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import SanaTransformer2DModel
from torch._subclasses.fake_tensor import FakeTensorMode

from sanakit.adapters import adapters_of, attach
from sanakit.adapters.base import adapter_class_of
from sanakit.contracts import LatentSpec, TextSpec
from sanakit.errors import SanakitError
from sanakit.strategies.base import Strategy
from sanakit.training.live_bytes import as_fake, as_meta
from sanakit.training.loop import TrainOptions
from sanakit.training.optimizers import OPTIMIZERS
from sanakit.training.step_trace import step_bytes

FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes are of one rank, the checkpoint's of the whole. tokens: of images and captions, a step, padding included.

    activations: what autograd keeps between the forward and the backward pass, inputs of the step included. flops: of a
    step, over all ranks.
    """

    world_size: int
    parameters: int
    trained_parameters: int
    adapter_parameters: int  # of modules that a plain core of the same shapes lacks
    images_per_step: int
    image_tokens_per_step: int
    caption_tokens_per_step: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    communication: int
    peak: int
    checkpoint: int
    flops: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def fake_core(
    config: dict[str, Any],
    *,
    latents: LatentSpec | None = None,
    text: TextSpec | None = None,
    adapters: Sequence[str] = (),
    adapter: str | None = None,
    base_ratio: int = 32,
    image_size: int = 1024,
) -> tuple[SanaTransformer2DModel, FakeTensorMode]:
    """A core of the config without memory; with `latents` or `text` the interface layers are those of that candidate,
    joined by `adapter`. adapters: that the base has already."""
    mode = FakeTensorMode()
    with mode:
        core = SanaTransformer2DModel(**{k: v for k, v in config.items() if not k.startswith("_")})
        for name in adapters:
            attach(core, name)
        if latents is not None:
            geometry = {"base_ratio": base_ratio, "image_size": image_size}
            core = adapter_class_of(adapter, True, "the candidate").fit(core, latents, **geometry)
        elif text is not None:
            core = adapter_class_of(adapter, False, "the candidate").fit(core, text)
        elif adapter and adapter not in adapters_of(core):
            attach(core, adapter)
    return core, mode


def fake_groups(core: SanaTransformer2DModel, mode: FakeTensorMode, strategy: type[Strategy]) -> list[dict[str, Any]]:
    """`strategy.parameter_groups` of a core of fake tensors. Low-rank adapters are added on the meta device: peft moves
    what it adds, which fake tensors refuse."""
    if not strategy.lora_rank:
        with mode, torch.random.fork_rng():
            return strategy.parameter_groups(core)
    as_meta(core)
    groups = strategy.parameter_groups(core)
    now = as_fake(core, mode)
    return [group | {"params": [now[id(p)] for p in group["params"]]} for group in groups]


def estimate(
    core: SanaTransformer2DModel,
    mode: FakeTensorMode,
    strategy: type[Strategy],
    options: TrainOptions,
    *,
    latent_shape: tuple[int, int, int],
    caption_length: int,
    world_size: int,
    fused_attention: bool = True,
) -> Estimate:
    """For one rank of `world_size`. fused_attention: whether the device's cross-attention keeps no matrix of tokens x
    captions, as on CUDA. Raises SK0104 for a batch that does not divide."""
    if options.batch_size % (world_size * options.accumulate):
        raise SanakitError(
            "SK0104",
            f"train.batch_size {options.batch_size} does not divide by {world_size} ranks x {options.accumulate} "
            "micro-batches",
        )
    micro = options.batch_size // (world_size * options.accumulate)
    share = world_size if options.parallel == "fsdp" and world_size > 1 else 1
    plain = sum(p.numel() for p in core.parameters())
    groups = fake_groups(core, mode, strategy)
    trained = sum(p.numel() for group in groups for p in group["params"])
    step = step_bytes(core, mode, options, micro, latent_shape, caption_length, fused_attention=fused_attention)
    total = sum(p.numel() for p in core.parameters())
    with mode, torch.random.fork_rng():
        same_shapes = SanaTransformer2DModel(**{k: v for k, v in core.config.items() if not k.startswith("_")})
    weights = FP32 * sum(v.numel() for v in core.state_dict().values())
    gradients, optimizer = FP32 * trained, OPTIMIZERS[options.optimizer].bytes_a_parameter * trained
    average = weights if options.ema_decay else 0
    block = FP32 * sum(p.numel() for p in core.transformer_blocks[0].parameters())
    # FSDP2 holds the block that runs and the next one whole; DDP copies gradients into buckets
    communication = 2 * block if share > 1 else gradients if world_size > 1 else 0
    # of a backward pass: gradients of the activations, of the weights that are trained, and the forward pass once more
    passes = 2 + trained / total + options.gradient_checkpointing
    late = step.late - gradients + gradients // share
    early = step.early - (gradients - gradients // share if options.accumulate > 1 else 0)
    _, height, width = latent_shape
    return Estimate(
        world_size=world_size,
        parameters=total,
        trained_parameters=trained,
        adapter_parameters=plain - sum(p.numel() for p in same_shapes.parameters()),
        images_per_step=options.batch_size,
        image_tokens_per_step=options.batch_size * height * width // core.config.patch_size**2,
        caption_tokens_per_step=options.batch_size * caption_length,
        weights=weights // share,
        gradients=gradients // share,
        optimizer=optimizer // share,
        average=average // share,
        activations=step.activations,
        communication=communication,
        peak=(weights + optimizer + average) // share + communication + max(early, late, gradients // share),
        checkpoint=weights + optimizer + average,
        flops=round(step.flops * passes * world_size * options.accumulate),
    )
