"""Streaming channel moments in float64: one pass, memory independent of the number of samples, mergeable.

Central sums merge by the formulas of Pebay (2008), so batches and ranks give what one pass over all would, to rounding.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ChannelMoments:
    """count: values a channel. mean (C,); comoment (C, C): sum of (x - mean)(x - mean)^T; third, fourth (C,): central
    sums. Tensors stay on the device they came from; nothing synchronises until a property is read."""

    count: int
    mean: Tensor
    comoment: Tensor
    third: Tensor
    fourth: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """values: (n, C), or latents (n, C, h, w), whose pixels are then the values of a channel."""
        rows = (values.movedim(1, -1).flatten(0, -2) if values.ndim > 2 else values).double()
        mean = rows.mean(0)
        centred = rows - mean
        return cls(
            count=len(rows),
            mean=mean,
            comoment=centred.T @ centred,
            third=centred.pow(3).sum(0),
            fourth=centred.pow(4).sum(0),
        )

    def merge(self, other: Self) -> Self:
        n, a, b = self.count + other.count, self.count, other.count
        delta = other.mean - self.mean
        second_a, second_b = self.comoment.diagonal(), other.comoment.diagonal()
        third = (
            self.third + other.third + delta**3 * a * b * (a - b) / n**2 + 3 * delta * (a * second_b - b * second_a) / n
        )
        fourth = (
            self.fourth
            + other.fourth
            + delta**4 * a * b * (a * a - a * b + b * b) / n**3
            + 6 * delta**2 * (a * a * second_b + b * b * second_a) / n**2
            + 4 * delta * (a * other.third - b * self.third) / n
        )
        comoment = self.comoment + other.comoment + torch.outer(delta, delta) * a * b / n
        return type(self)(count=n, mean=self.mean + delta * b / n, comoment=comoment, third=third, fourth=fourth)

    @property
    def covariance(self) -> Tensor:
        return self.comoment / self.count

    @property
    def std(self) -> Tensor:
        return self.covariance.diagonal().sqrt()

    @property
    def correlation(self) -> Tensor:
        """(C, C); 0 where a channel is constant."""
        scale = self.std.clamp_min(1e-300)
        return self.covariance / torch.outer(scale, scale)

    @property
    def skewness(self) -> Tensor:
        return self.third / self.count / self.std.clamp_min(1e-75) ** 3

    @property
    def kurtosis(self) -> Tensor:
        """Excess: 0 for a Gaussian."""
        return self.fourth / self.count / self.std.clamp_min(1e-75) ** 4 - 3


def merge_all(parts: Iterable[ChannelMoments]) -> ChannelMoments:
    return reduce(ChannelMoments.merge, parts)
