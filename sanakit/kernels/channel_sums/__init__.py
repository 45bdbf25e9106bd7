"""Sums of latents and of their products over channels in one pass, the kernel behind first and second moments.

Sums merge by addition, across batches and ranks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sanakit.kernels import uses_triton
from sanakit.kernels.channel_sums import naive


@dataclass(frozen=True, kw_only=True)
class ChannelSums:
    """count positions; total (..., C) sums; products (..., C, C) sums of outer products. Float64, about zero.

    The same sums as `alignment.CrossMoments`: of cat([x, y], 1) with x of C channels they are
    `CrossMoments(count, total[:C], total[C:], products[:C, :C], products[C:, :C], products.diagonal()[C:])`.
    """

    count: int
    total: Tensor
    products: Tensor

    def __add__(self, other: "ChannelSums") -> "ChannelSums":
        return ChannelSums(
            count=self.count + other.count,
            total=self.total + other.total,
            products=self.products + other.products,
        )

    @property
    def mean(self) -> Tensor:
        """(..., C)"""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(..., C, C), divided by the count."""
        return self.products / self.count - self.mean[..., :, None] * self.mean[..., None, :]

    @property
    def std(self) -> Tensor:
        """(..., C)"""
        return self.covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()

    @property
    def features(self) -> Tensor:
        """(..., 2C): means and log standard deviations, what `drift.latent_features` gives of `per_image` moments."""
        return torch.cat([self.mean, self.std.clamp_min(1e-6).log()], -1).float()


def channel_sums(latents: Tensor, *, per_image: bool = False) -> ChannelSums:
    """ChannelSums of (N, C, H, W), any strides, over all positions, or over those of each image: (N, C), (N, C, C)."""
    if not uses_triton(latents):
        total, products = naive.channel_sums(latents, per_image)
    else:
        from sanakit.kernels.channel_sums import triton

        total, products = triton.channel_sums(latents, per_image)
    images, _, height, width = latents.shape
    return ChannelSums(count=height * width * (1 if per_image else images), total=total, products=products)
