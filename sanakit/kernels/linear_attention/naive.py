"""Specification: out_n = relu(q_n) S / (relu(q_n) z + eps), S = sum_m relu(k_m)^T v_m, z = sum_m relu(k_m)."""

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-15  # diffusers' SanaLinearAttnProcessor2_0


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, N, H, D), (B, M, H, D), (B, M, H, D) -> (B, N, H, D); sums and quotient in single precision or better."""
    precision = torch.promote_types(query.dtype, torch.float32)
    q = query.permute(0, 2, 3, 1).relu().to(precision)  # (B, H, D, N)
    k = key.permute(0, 2, 1, 3).relu().to(precision)  # (B, H, M, D)
    v = F.pad(value.permute(0, 2, 3, 1).to(precision), (0, 0, 0, 1), value=1.0)  # (B, H, D + 1, M), z in the last row
    out = v @ k @ q
    out = out[:, :, :-1] / (out[:, :, -1:] + EPS)
    return out.permute(0, 3, 1, 2).to(query.dtype)
