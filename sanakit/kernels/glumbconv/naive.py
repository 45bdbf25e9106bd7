"""Specification: c = depthwise 3x3 of silu(u), zero padding; the first half of c times silu of the second half."""

from torch import Tensor
from torch.nn import functional as F


def gated_depthwise(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, 2F, H, W), (2F, 1, 3, 3), (2F) -> (B, F, H, W)"""
    value, gate = F.conv2d(F.silu(hidden), weight, bias, padding=1, groups=len(weight)).chunk(2, dim=1)
    return value * F.silu(gate)
