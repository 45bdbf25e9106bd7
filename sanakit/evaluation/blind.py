"""How much of a system's held-out quality comes from its prompts: losses of a prediction that does not see them.

A loss with the null prompt alone misleads where a core was never trained on the null prompt, and one with other images'
prompts pays for what those prompts say wrongly. Both are predictions that know nothing of the image's own prompt, and
so is any linear combination of them and of the noisy latents. The best combination at every sigma (least squares, three
coefficients) is the estimate: an upper bound on the loss of the best prompt-blind prediction. docs/strategies.md has
how near it comes to a core that was trained with every prompt dropped.
"""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor

from sanakit.assembly import LatentDiffusion, core_at_work
from sanakit.data.dataset import LatentDataset
from sanakit.evaluation.held_out import CHUNK, HeldOut, by_sigma, chunks_and_sigmas, fixed_noise, held_out
from sanakit.flow import EVAL_SIGMAS, interpolate
from sanakit.placement import precise_dtype
from sanakit.ranks.sharing import shared

OTHERS = 3  # other images' prompts that stand for all of them
RIDGE = 1e-6  # of the products' mean diagonal: two predictions may be the same


def blind_held_out(
    system: LatentDiffusion,
    data: LatentDataset,
    *,
    count: int = 256,
    seed: int = 1,
    sigmas: tuple[float, ...] = EVAL_SIGMAS,
) -> HeldOut:
    """As `held_out`, of the best linear combination of three predictions that do not see the image's prompt: the
    velocity for the null prompt, the mean velocity over other images' prompts, and the noisy latents."""
    count = min(count, len(data))
    others = min(OTHERS, count - 1)
    noise = fixed_noise(data, count, seed)
    prompts = data.evaluation_prompts(torch.arange(count))
    put = system.placement.put

    def measure(pairs: Sequence[tuple[int, float]]) -> list[Tensor]:
        products: list[Tensor] = []
        for start, of_chunk in groupby(pairs, itemgetter(0)):  # chunk and prompts go to the device once, for all sigmas
            part = torch.arange(start, min(start + CHUNK, count))
            latents, drawn = put(data.latents[part, 0]), put(noise[part])
            strange = [prompts[(part + 1 + k * (count - 1) // others) % count].map(put) for k in range(others)]
            null = system.drop_prompts(prompts[part], torch.ones(len(part), dtype=torch.bool)).map(put)
            for _, sigma in of_chunk:
                level = torch.full((len(part),), sigma, device=latents.device)
                noisy = interpolate(latents, drawn, level)
                blind = [system.velocity(noisy, level, prompt) for prompt in strange]
                rest = [system.velocity(noisy, level, null), noisy, drawn - latents]
                products.append(_products(blind, rest).cpu().double())
        return products

    with core_at_work(system):
        products = by_sigma(shared(chunks_and_sigmas(count, sigmas), measure), len(sigmas))
    return HeldOut(sigmas, torch.stack([_combined(rows).float() for rows in products]))


def conditional_gain(
    system: LatentDiffusion, data: LatentDataset, *, count: int = 256, weights: Tensor | None = None
) -> Tensor:
    """Loss of the prompt-blind prediction less the loss with the image's own prompt, summed over EVAL_SIGMAS by
    `weights` (S,), by default their mean. (N,)"""
    evaluated = held_out(system, data, count=count)
    gain = blind_held_out(system, data, count=count).losses - evaluated.losses
    return gain.mean(0) if weights is None else weights.to(gain.dtype) @ gain


def _products(strangers: list[Tensor], others: list[Tensor]) -> Tensor:
    """Mean products of [mean stranger, *others] with one another, per image: (B, 1 + len(others), ...) float64.

    The mean stranger stands for the mean over all prompts: its product with itself is that of two different strangers.
    """
    exact = precise_dtype(strangers[0].device)
    few = torch.stack([s.flatten(1).to(exact) for s in strangers])  # (K, B, D)
    rows = torch.stack([few.mean(0), *(o.flatten(1).to(exact) for o in others)], 1)  # (B, F, D)
    products = rows @ rows.mT / rows.shape[2]
    count = len(few)
    if count > 1:
        single = few.square().mean((0, 2))
        products[:, 0, 0] = (count * products[:, 0, 0] - single) / (count - 1)
    return products


def _combined(products: Tensor) -> Tensor:
    """(N, F, F) products, the target last -> (N,) squared error of the best combination of the others over all rows."""
    mean = products.mean(0)
    size = len(mean) - 1
    ridge = RIDGE * mean[:size, :size].diagonal().mean() * torch.eye(size, dtype=mean.dtype)
    best = torch.linalg.solve(mean[:size, :size] + ridge, mean[:size, size])
    combination = torch.cat([best, -torch.ones(1, dtype=mean.dtype)])
    return torch.einsum("f,nfg,g->n", combination, products, combination)
