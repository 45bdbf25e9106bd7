"""A training step and a forward pass of a core of fake tensors, traced: bytes that are alive, and operations.

Blocks are alike, so cores of two and three blocks are traced, and what the third one adds is counted for the others.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from sanakit.flow import TIMESTEP_SCALE, interpolate, velocity_loss
from sanakit.training.batches import TrainOptions
from sanakit.training.live_bytes import LiveBytes

HOST = "cpu"  # fake tensors are the host's: their operators and autocast rules keep the same tensors as a device's
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
TRACED = (2, 3)  # blocks


@dataclass(frozen=True, kw_only=True)
class StepBytes:
    """Bytes of a step beyond the weights, moments and average, gradients included. activations: alive after the forward
    pass of a micro-batch. forward, head, blocks, late: the most alive in the forward pass, in the backward pass up to
    the last block, from the last block to the second, and from the first block on; gradients of the other blocks exist
    by then. flops: of the forward pass of a micro-batch."""

    activations: int
    forward: int
    head: int
    blocks: int
    late: int
    flops: int

    @property
    def early(self) -> int:
        """The most alive before the backward pass of the first block."""
        return max(self.forward, self.head, self.blocks)

    def deeper(self, other: "StepBytes", blocks: int) -> "StepBytes":
        """Of a core that has `blocks` blocks more than this one; other: of one that has one block less than this
        one. Every phase grows by itself: the one that needs the most in a shallow core need not in a deep one."""
        return StepBytes(**{k: v + blocks * (v - getattr(other, k)) for k, v in asdict(self).items()})


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
    traces = []
    try:
        for number in TRACED:
            core.transformer_blocks = nn.ModuleList(list(blocks)[:number])
            traces.append(traced())
    finally:
        core.transformer_blocks = blocks
    return traces[1].deeper(traces[0], depth - TRACED[1])


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
    activations = flops = 0
    weights, blocks = LiveBytes(core).now, core.transformer_blocks
    with LiveBytes(core) as live:
        latents, noise = torch.empty(batch, *latent_shape), torch.empty(batch, *latent_shape)
        embeds, mask = torch.empty(batch, caption_length, channels), torch.ones(batch, caption_length, dtype=torch.bool)
        sigmas = torch.empty(batch)
        phases = Phases(live)
        for _ in range(min(2, options.accumulate)):
            ends = {"head": blocks[-1], "blocks": blocks[0]}  # of one block alone: nothing lies between
            handles = [block.register_forward_hook(phases.border(ended)) for ended, block in ends.items()]
            loss = _loss(core, options, latents[:micro], noise[:micro], sigmas[:micro], embeds[:micro], mask[:micro])
            for handle in handles:
                handle.remove()
            activations, flops = activations or live.now - weights, flops or live.flops
            phases.end("forward")
            loss.backward()
            del loss
            phases.end("late")
    core.zero_grad(set_to_none=True)
    if toggled:
        core.disable_gradient_checkpointing()
    return StepBytes(activations=activations, flops=flops, **phases.beyond(weights))


class Phases:
    """The most bytes alive in each phase of a step, over its micro-batches."""

    def __init__(self, live: LiveBytes) -> None:
        self.live = live
        self.most = dict.fromkeys(("forward", "head", "blocks", "late"), 0)

    def end(self, phase: str) -> None:
        self.most[phase] = max(self.most[phase], self.live.restart())

    def border(self, ended: str) -> Any:
        """A forward hook: the phase `ended` is over when the gradient of the module's output is there."""

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda gradient: self.end(ended))

        return hook

    def beyond(self, weights: int) -> dict[str, int]:
        return {phase: max(most - weights, 0) for phase, most in self.most.items()}


def _loss(
    core: nn.Module, options: TrainOptions, latents: Tensor, noise: Tensor, sigmas: Tensor, embeds: Tensor, mask: Tensor
) -> Tensor:
    """The loss of a micro-batch, as the loop (loop.py) computes it."""
    with _autocast(options.precision):
        predicted = core(
            hidden_states=interpolate(latents, noise, sigmas),
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask,
            timestep=sigmas * TIMESTEP_SCALE,
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
    """Of a forward pass without gradients: bytes beyond the weights, and floating-point operations. precision: that of
    autocast; a core whose weights are in half precision computes in it."""
    dtype = next(core.parameters()).dtype
    blocks, readings = core.transformer_blocks, []
    try:
        for number in sorted({min(len(blocks), n) for n in TRACED}):
            core.transformer_blocks = nn.ModuleList(list(blocks)[:number])
            with mode, attention(fused_attention), torch.no_grad(), _autocast(precision), LiveBytes(core) as live:
                weights = live.now
                core(
                    hidden_states=torch.empty(images, *latent_shape, dtype=dtype),
                    encoder_hidden_states=torch.empty(
                        images, caption_length, core.config.caption_channels, dtype=dtype
                    ),
                    encoder_attention_mask=torch.ones(images, caption_length, dtype=torch.bool),
                    timestep=torch.empty(images),
                    return_dict=False,
                )
            readings.append((live.peak - weights, live.flops))
    finally:
        core.transformer_blocks = blocks
    more = max(0, len(blocks) - TRACED[-1])
    first, last = readings[0], readings[-1]
    return last[0] + more * (last[0] - first[0]), last[1] + more * (last[1] - first[1])
