"""The gated depthwise middle of GLUMBConv (Sana's mix-FFN, arXiv 2410.10629): everything between its 1x1
convolutions."""

from torch import Tensor

from sanakit.kernels import uses_triton
from sanakit.kernels.glumbconv import naive


def gated_depthwise(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """hidden (B, 2F, H, W) of any strides, weight (2F, 1, 3, 3), bias (2F) -> (B, F, H, W), differentiable."""
    if not uses_triton(hidden):
        return naive.gated_depthwise(hidden, weight, bias)
    from sanakit.kernels.glumbconv.triton import GatedDepthwise

    return GatedDepthwise.apply(hidden, weight, bias)
