"""One core walked branch by branch over a set of draws: its residual stream is kept on the host, nothing else is.

A block of a Sana core adds three branches to its stream: linear self-attention, cross-attention and mix-FFN (arXiv
2410.10629). The walk runs one branch over one chunk of draws at a time, and shows what the branch's last layer reads
and writes.
"""

from dataclasses import dataclass, field

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn

from sanakit.text_encoders import PromptEmbeds

BRANCHES = ("attn1", "attn2", "ff")  # of a block, in the order in which it adds them
GATE = {"attn1": 2, "ff": 5}  # where a branch's gate lies among the six of a block's modulation
MASKED = -10_000.0  # what diffusers adds to the attention scores of padding


@dataclass(frozen=True)
class Branch:
    """features: (B, T, D), read by the branch's last layer. output: (B, T, H). gate: (B, 1, H), None where it has
    none."""

    features: Tensor
    output: Tensor
    gate: Tensor | None

    @property
    def addition(self) -> Tensor:
        """What the branch adds to the stream. (B, T, H)"""
        return self.output if self.gate is None else self.gate * self.output


@dataclass
class Walk:
    """streams: (B, T, H) of every chunk, on the host, in the core's dtype. grid: tokens in height and width."""

    core: SanaTransformer2DModel
    timestep_scale: float
    grid: tuple[int, int] = (0, 0)
    streams: list[Tensor] = field(default_factory=list)

    def enter(self, noisy: Tensor) -> None:
        """One more chunk: its latents (B, C, h, w) through the patch embedding."""
        patch = self.core.config.patch_size
        self.grid = noisy.shape[-2] // patch, noisy.shape[-1] // patch
        self.streams.append(self.core.patch_embed(noisy.to(self._device)).cpu())

    def gates(self, number: int, name: str, sigmas: Tensor) -> Tensor | None:
        """Of a block's branch at every sigma (N,): (N, H); None for cross-attention, which has none."""
        modulation = self._modulation(self.core.transformer_blocks[number], sigmas)
        return None if name == "attn2" else modulation[GATE[name]][:, 0].clone()

    def branch(self, chunk: int, number: int, name: str, sigmas: Tensor, prompt: PromptEmbeds | None) -> Branch:
        """A branch of block `number` on a chunk's stream, which stays as it is. prompt: read by cross-attention
        alone."""
        block, stream = self.core.transformer_blocks[number], self.streams[chunk].to(self._device)
        seen: list[Tensor] = []
        handle = last_layer(block, name).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            output, gate = self._run(block, name, stream, sigmas, prompt)
        finally:
            handle.remove()
        features = seen[0]
        return Branch(features.flatten(2).mT if features.ndim == 4 else features, output, gate)

    def add(self, chunk: int, addition: Tensor) -> None:
        self.streams[chunk] += addition.to(self.streams[chunk])

    def last_features(self, chunk: int, sigmas: Tensor) -> Tensor:
        """What the output projection reads, after the last block. (B, T, H)"""
        _, embedded = self._time(sigmas)
        return self.core.norm_out(self.streams[chunk].to(self._device), embedded, self.core.scale_shift_table)

    def _run(
        self, block: nn.Module, name: str, stream: Tensor, sigmas: Tensor, prompt: PromptEmbeds | None
    ) -> tuple[Tensor, Tensor | None]:
        """diffusers' SanaTransformerBlock.forward, one branch of it."""
        modulation = self._modulation(block, sigmas)  # first: an adapter of the captions is handed the time embedding
        if name == "attn2":
            assert prompt is not None
            captions, bias = self._captions(prompt)
            return block.attn2(stream, encoder_hidden_states=captions, attention_mask=bias), None
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation
        if name == "attn1":
            return block.attn1(block.norm1(stream) * (1 + scale_msa) + shift_msa), gate_msa
        tokens = block.norm2(stream) * (1 + scale_mlp) + shift_mlp
        image = tokens.unflatten(1, self.grid).permute(0, 3, 1, 2)
        return block.ff(image).flatten(2).mT, gate_mlp

    def _time(self, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        dtype = self.core.scale_shift_table.dtype
        times = sigmas.to(self._device) * self.timestep_scale
        return self.core.time_embed(times, batch_size=len(sigmas), hidden_dtype=dtype)

    def _modulation(self, block: nn.Module, sigmas: Tensor) -> tuple[Tensor, ...]:
        time, _ = self._time(sigmas)
        return (block.scale_shift_table[None] + time.reshape(len(sigmas), 6, -1)).chunk(6, dim=1)

    def _captions(self, prompt: PromptEmbeds) -> tuple[Tensor, Tensor]:
        """Caption features (B, L, H) and the bias of the attention scores (B, 1, L)."""
        dtype = self.core.scale_shift_table.dtype
        features = self.core.caption_projection(prompt.embeds.to(self._device, dtype))
        bias = (1 - prompt.mask.to(self._device, dtype))[:, None] * MASKED
        return self.core.caption_norm(features.view(len(prompt), -1, features.shape[-1])), bias

    @property
    def _device(self) -> torch.device:
        return next(self.core.parameters()).device


def last_layer(block: nn.Module, name: str) -> nn.Module:
    """The layer that writes a branch's output: a linear layer, or the 1 x 1 convolution of the mix-FFN."""
    return block.ff.conv_point if name == "ff" else getattr(block, name).to_out[0]
