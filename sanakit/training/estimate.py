"""What a run will need, before it runs: parameters, memory of a rank, images and tokens of a step, checkpoint size.

The core is built of fake tensors (no memory, no weights on disk), a step's forward and backward pass go through its real
modules, and every storage is counted while it is alive (live_bytes.py). Blocks are alike, so cores of two and three blocks are
traced and what the third one adds is counted for the others. Not counted: the VAE and text encoder (a cache serves them), the
device's own context, allocator fragmentation, kernels' scratch memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from sanakit.adapters import adapters_of, attach
from sanakit.adapters.base import adapter_class_of
from sanakit.contracts import LatentSpec, TextSpec
from sanakit.errors import SanakitError
from sanakit.flow import interpolate, velocity_loss
from sanakit.strategies.base import Strategy
from sanakit.training.live_bytes import LiveBytes, as_fake, as_meta
from sanakit.training.loop import TrainOptions
from sanakit.training.optimizers import OPTIMIZERS

FP32 = 4
HOST = "cpu"  # fake tensors are the host's: their operators and autocast rules keep the same tensors as a device's
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
TRACED = (2, 3)  # blocks


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes are of one rank, the checkpoint's of the whole. tokens: of images and captions, a step, padding included.

    activations: what autograd keeps between the forward and the backward pass, inputs of the step included. flops: of a step,
    over all ranks.
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


@dataclass(frozen=True, kw_only=True)
class StepBytes:
    """Bytes of a step beyond the weights, moments and average, gradients included. activations: alive after the forward pass of
    a micro-batch. early, late: the most alive before and from the backward pass of the first block on; gradients of the other
    blocks exist by then. flops: of the forward pass of a micro-batch."""

    activations: int
    early: int
    late: int
    flops: int

    def deeper(self, other: "StepBytes", blocks: int) -> "StepBytes":
        """Of a core that has `blocks` blocks more than this one; other: of one that has one block less than this one."""
        return StepBytes(**{k: v + blocks * (v - getattr(other, k)) for k, v in asdict(self).items()})


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
    """A core of the config without memory; with `latents` or `text` the interface layers are those of that candidate, joined by
    `adapter`. adapters: that the base has already."""
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
    """`strategy.parameter_groups` of a core of fake tensors. Low-rank adapters are added on the meta device: peft moves what it
    adds, which fake tensors refuse."""
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
    """For one rank of `world_size`. fused_attention: whether the device's cross-attention keeps no matrix of tokens x captions,
    as on CUDA. Raises SK0104 for a batch that does not divide."""
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


def step_bytes(
    core: SanaTransformer2DModel,
    mode: FakeTensorMode,
    options: TrainOptions,
    micro: int,
    latent_shape: tuple[int, int, int],
    caption_length: int,
    *,
    fused_attention: bool = True,
) -> StepBytes:
    """Of a step with `micro` images a micro-batch. What requires a gradient is what will be trained."""
    shapes = (micro, latent_shape, caption_length)

    def traced() -> StepBytes:
        with mode, attention(fused_attention):
            return _traced_step(core, options, *shapes)

    blocks = core.transformer_blocks
    depth = len(blocks)
    if depth <= max(TRACED):
        return traced()
    found = []
    try:
        for number in TRACED:
            core.transformer_blocks = nn.ModuleList(list(blocks)[:number])
            found.append(traced())
    finally:
        core.transformer_blocks = blocks
    return found[1].deeper(found[0], depth - TRACED[1])


@contextmanager
def attention(fused: bool) -> Iterator[None]:
    """Attention that keeps no matrix of queries x keys, or PyTorch's own that does."""
    with nullcontext() if fused else sdpa_kernel(SDPBackend.MATH):
        yield


def _autocast(precision: str) -> Any:
    half = AUTOCAST.get(precision)
    return torch.autocast(HOST, half) if half else nullcontext()


def _traced_step(
    core: SanaTransformer2DModel,
    options: TrainOptions,
    micro: int,
    latent_shape: tuple[int, int, int],
    caption_length: int,
) -> StepBytes:
    """Inside the fake mode: forward and backward pass of a micro-batch; of a second one, where there are several."""
    core.train()
    toggled = options.gradient_checkpointing and not core.gradient_checkpointing
    if toggled:
        core.enable_gradient_checkpointing()
    channels, batch = core.config.caption_channels, micro * options.accumulate
    early = activations = flops = 0
    weights = LiveBytes(core).now
    with LiveBytes(core) as live:
        latents, noise = torch.empty(batch, *latent_shape), torch.empty(batch, *latent_shape)
        embeds, mask = torch.empty(batch, caption_length, channels), torch.ones(batch, caption_length, dtype=torch.bool)
        sigmas = torch.empty(batch)

        def border(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(passed)

        def passed(gradient: Tensor) -> None:
            nonlocal early
            early = max(early, live.restart())

        for _ in range(min(2, options.accumulate)):
            handle = core.transformer_blocks[0].register_forward_hook(border)
            loss = _loss(core, options, latents[:micro], noise[:micro], sigmas[:micro], embeds[:micro], mask[:micro])
            handle.remove()
            activations, flops = activations or live.now - weights, flops or live.flops
            loss.backward()
            del loss
        late = live.restart()
    core.zero_grad(set_to_none=True)
    if toggled:
        core.disable_gradient_checkpointing()
    return StepBytes(activations=activations, early=max(early - weights, 0), late=late - weights, flops=flops)


def _loss(
    core: nn.Module, options: TrainOptions, latents: Tensor, noise: Tensor, sigmas: Tensor, embeds: Tensor, mask: Tensor
) -> Tensor:
    """The loss of a micro-batch, as the loop (loop.py) computes it."""
    with _autocast(options.precision):
        predicted = core(
            hidden_states=interpolate(latents, noise, sigmas),
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask,
            timestep=sigmas * 1000.0,
            return_dict=False,
        )[0]
    return velocity_loss(predicted.float(), latents, noise).mean()


def forward_bytes(
    core: SanaTransformer2DModel,
    mode: FakeTensorMode,
    images: int,
    latent_shape: tuple[int, int, int],
    caption_length: int,
    *,
    precision: str = "fp32",
    fused_attention: bool = True,
) -> tuple[int, int]:
    """Of a forward pass without gradients: bytes beyond the weights, and floating-point operations. precision: that of autocast; a
    core whose weights are in half precision computes in it."""
    dtype = next(core.parameters()).dtype
    blocks, found = core.transformer_blocks, []
    try:
        for number in sorted({min(len(blocks), n) for n in TRACED}):
            core.transformer_blocks = nn.ModuleList(list(blocks)[:number])
            with mode, attention(fused_attention), torch.no_grad(), _autocast(precision), LiveBytes(core) as live:
                weights = live.now
                core(
                    hidden_states=torch.empty(images, *latent_shape, dtype=dtype),
                    encoder_hidden_states=torch.empty(images, caption_length, core.config.caption_channels, dtype=dtype),
                    encoder_attention_mask=torch.ones(images, caption_length, dtype=torch.bool),
                    timestep=torch.empty(images),
                    return_dict=False,
                )
            found.append((live.peak - weights, live.flops))
    finally:
        core.transformer_blocks = blocks
    more = max(0, len(blocks) - TRACED[-1])
    first, last = found[0], found[-1]
    return last[0] + more * (last[0] - first[0]), last[1] + more * (last[1] - first[1])
