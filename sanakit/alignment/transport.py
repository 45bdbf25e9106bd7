"""Tokens of a caption and of its translation, paired by optimal transport (POT, arXiv 2106.01954).

No characters are common to two languages, so that offsets pair nothing. Mean tokens of whole captions are mapped first
(alignment/text.py); under that map a token of the candidate has a distance to each of the base's, and the transport of
least total distance pairs them.
"""

import importlib.util

import torch
from torch import Tensor


def has_transport() -> bool:
    """Whether the package POT is installed."""
    return importlib.util.find_spec("ot") is not None


def transport_tokens(mapped: Tensor, goals: Tensor, free: Tensor, base_free: Tensor) -> Tensor:
    """Share of every base token in a candidate's token: (B, L, L_base), rows sum to 1 where `free`, else to 0.

    mapped (B, L, E): candidate tokens in the space of the base's, goals (B, L_base, E). free (B, L), base_free (B,
    L_base): the tokens that are transported, each side's with equal weights.
    """
    import ot

    cost = torch.cdist(mapped.double(), goals.double()).square().cpu().numpy()
    shares = torch.zeros(cost.shape)
    for row, (mine, theirs) in enumerate(zip(free.cpu().numpy(), base_free.cpu().numpy(), strict=True)):
        if mine.any() and theirs.any():
            plan = ot.emd([], [], cost[row][mine][:, theirs])  # no weights: equal ones
            block = torch.from_numpy(plan / plan.sum(1, keepdims=True)).float()
            shares[row, torch.from_numpy(mine)[:, None] & torch.from_numpy(theirs)] = block.flatten()
    return shares
