"""Outputs of the core's adapters and blocks while it trains, and what the base computes at the same places."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from sanakit.assembly import LatentDiffusion, core_at_work
from sanakit.data.dataset import LatentDataset
from sanakit.flow import interpolate
from sanakit.training.batches import TrainOptions, draw_batch

MOST_BYTES = 512 << 20  # of what the base computes; a smaller sample is taken of a large core
LEAST = 128  # rows, however large
ADAPTERS = {"patch embedding": "patch_embed", "caption projection": "caption_projection"}


class Taps:
    """Outputs of the core's adapters and of its first, middle and last block, of a step's first pass while armed."""

    def __init__(self, core: nn.Module) -> None:
        blocks = core.get_submodule("transformer_blocks")
        depths = sorted({0, len(blocks) // 2, len(blocks) - 1})  # type: ignore[arg-type]
        self.places = {place: core.get_submodule(name) for place, name in ADAPTERS.items()}
        self.places |= {f"block {d + 1} of {len(blocks)}": blocks[d] for d in depths}  # type: ignore[arg-type,index]
        self.outputs: dict[str, Tensor] = {}
        self.armed = False
        self.always = False
        self.hooks = [m.register_forward_hook(self._keep(name)) for name, m in self.places.items()]

    def _keep(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            wanted = self.always or (self.armed and module.training)  # not while the loop evaluates
            if wanted and name in self.places and name not in self.outputs:
                self.outputs[name] = output.detach()

        return hook

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        self.always, self.outputs = True, {}
        yield self.outputs
        self.always = False


def affordable(shape: Sequence[int]) -> int:
    """Rows of this shape in fp32 that MOST_BYTES hold, at least LEAST. A prompt of 300 tokens by 2,304 has 2.6 MiB."""
    return max(LEAST, MOST_BYTES // (4 * math.prod(shape)))


def tapped(system: LatentDiffusion, data: LatentDataset, options: TrainOptions, count: int = 256) -> dict[str, Tensor]:
    """What the taps of a system see of `count` training draws: (rows, tokens, width) by place on the CPU, the caption
    mask too."""
    taps, parts = Taps(system.core), []
    size = min(options.batch_size, len(data))
    try:
        with core_at_work(system, exact=True):
            for step in range(-(-count // size)):
                batch = draw_batch(system, data, replace(options, batch_size=size), step)
                with taps.recording() as outputs:
                    system.velocity(interpolate(batch.latents, batch.noise, batch.sigmas), batch.sigmas, batch.prompt)
                parts.append({name: output.cpu() for name, output in outputs.items()} | {"mask": batch.prompt.mask})
                if sum(tensor.nbytes for part in parts for tensor in part.values()) > MOST_BYTES:
                    break
    finally:
        taps.close()
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
