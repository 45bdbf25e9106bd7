"""What a run will need, before it runs: parameters, memory of a rank, images and tokens of a step, checkpoint size.

The core is built of fake tensors (no memory, no weights on disk), one micro-batch goes through it, and what autograd
keeps for the backward pass is counted storage by storage. Not counted: the VAE and text encoder (a cache serves
them), CUDA's own context, allocator fragmentation, kernels' work space.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sanakit.adapters import adapters_of, attach
from sanakit.adapters.base import adapter_class_of
from sanakit.contracts import LatentSpec, TextSpec
from sanakit.errors import SanakitError
from sanakit.strategies.base import Strategy
from sanakit.training.loop import TrainOptions
from sanakit.training.optimizers import OPTIMIZERS

FP32 = 4
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes are of one rank, the checkpoint's of the whole. tokens: of images and captions, a step,
    padding included."""

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


def estimate(
    core: SanaTransformer2DModel,
    mode: FakeTensorMode,
    strategy: type[Strategy],
    options: TrainOptions,
    *,
    latent_shape: tuple[int, int, int],
    caption_length: int,
    world_size: int,
) -> Estimate:
    """For one rank of `world_size`. Raises SK0104 for a batch that does not divide, or for low-rank adapters."""
    if options.batch_size % (world_size * options.accumulate):
        raise SanakitError(
            "SK0104",
            f"train.batch_size {options.batch_size} does not divide by {world_size} ranks x {options.accumulate} "
            "micro-batches",
        )
    if strategy.lora_rank:
        raise SanakitError(
            "SK0104",
            f"no estimate for {strategy.name}: adapters cannot be built of fake tensors",
            fix="Leave out --world-size; strategy align+head bounds its optimiser from below, finetune from above.",
        )
    micro = options.batch_size // (world_size * options.accumulate)
    sharded = options.parallel == "fsdp" and world_size > 1
    share = world_size if sharded else 1
    with mode, torch.random.fork_rng():
        trained = sum(p.numel() for group in strategy.parameter_groups(core) for p in group["params"])
        activations = saved_bytes(core, options, micro, latent_shape, caption_length)
        plain = SanaTransformer2DModel(**{k: v for k, v in core.config.items() if not k.startswith("_")})
    total = sum(p.numel() for p in core.parameters())
    weights = FP32 * sum(v.numel() for v in core.state_dict().values())
    gradients, optimizer = FP32 * trained, OPTIMIZERS[options.optimizer].bytes_a_parameter * trained
    average = weights if options.ema_decay else 0
    block = FP32 * sum(p.numel() for p in core.transformer_blocks[0].parameters())
    # FSDP2 holds the block that runs and the next one whole; DDP copies gradients into buckets
    communication = 2 * block if sharded else gradients if world_size > 1 else 0
    _, height, width = latent_shape
    held = (weights + optimizer + average) // share + communication
    return Estimate(
        world_size=world_size,
        parameters=total,
        trained_parameters=trained,
        adapter_parameters=total - sum(p.numel() for p in plain.parameters()),
        images_per_step=options.batch_size,
        image_tokens_per_step=options.batch_size * height * width // core.config.patch_size**2,
        caption_tokens_per_step=options.batch_size * caption_length,
        weights=weights // share,
        gradients=gradients // share,
        optimizer=optimizer // share,
        average=average // share,
        activations=activations,
        communication=communication,
        # activations are given back while gradients come; with micro-batches both are there at once
        peak=held + (max if options.accumulate == 1 else sum)((activations, gradients // share)),
        checkpoint=weights + optimizer + average,
    )


def saved_bytes(
    core: nn.Module, options: TrainOptions, micro: int, latent_shape: tuple[int, int, int], caption_length: int
) -> int:
    """Bytes that autograd keeps for the backward pass of one micro-batch, parameters left out."""
    everything = _forward_bytes(core, options, micro, latent_shape, caption_length)
    if not options.gradient_checkpointing:
        return everything
    blocks = core.transformer_blocks
    core.transformer_blocks = nn.ModuleList([blocks[0]])
    one = _forward_bytes(core, options, micro, latent_shape, caption_length)
    core.transformer_blocks = blocks
    depth = len(blocks)  # type: ignore[arg-type]
    block = (everything - one) // max(1, depth - 1)
    _, height, width = latent_shape
    tokens = height * width // core.config.patch_size**2  # type: ignore[union-attr]
    inner = core.config.num_attention_heads * core.config.attention_head_dim  # type: ignore[union-attr]
    return (one - block) + depth * micro * tokens * inner * FP32 + block


def _forward_bytes(
    core: nn.Module, options: TrainOptions, micro: int, latent_shape: tuple[int, int, int], caption_length: int
) -> int:
    storages: dict[int, torch.UntypedStorage] = {}
    parameter_storages = {p.untyped_storage()._cdata for p in core.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameter_storages:
            storages[storage._cdata] = storage
        return tensor

    half = AUTOCAST.get(options.precision)
    autocast = torch.autocast("cpu", half) if half else nullcontext()
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = core(
            hidden_states=torch.empty(micro, *latent_shape),
            encoder_hidden_states=torch.empty(micro, caption_length, core.config.caption_channels),  # type: ignore[union-attr]
            encoder_attention_mask=torch.ones(micro, caption_length, dtype=torch.bool),
            timestep=torch.empty(micro),
            return_dict=False,
        )[0]
        loss = torch.nn.functional.mse_loss(output.float(), torch.empty_like(output, dtype=torch.float32))
    total = sum(storage.nbytes() for storage in storages.values())
    del loss
    return total
