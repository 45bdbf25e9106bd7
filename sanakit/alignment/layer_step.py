"""The ridge step of one output layer, from streaming normal equations: what it adds brings a stream to where it should
be.

A branch writes `gate * (W x + b)` to the stream; the gate depends on sigma and channel. The direction of the step
weighs every draw by its gates' mean square, so that one matrix serves all channels (products of a chunk in float32,
sums in float64); its length is then exact for each channel along that direction, measured on a sample of rows. Memory
depends on the layer alone, never on the number of draws.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.alignment.cross_moments import ENOUGH
from sanakit.errors import SanakitError

SAMPLED = 4096  # rows that measure the length of a step
LONGEST = 50.0  # times the step of the direction: a channel whose gate is nearly shut is left there


class LayerStep:
    """Sums over draws for `layer`: a linear layer or a 1 x 1 convolution of D features (one more with a bias) and H
    outputs.

    gates: (N, H) of all draws, None where the branch has no gate. tokens: of a draw. where: what an error calls the
    layer.
    """

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, gates: Tensor | None, *, draws: int, tokens: int, where: str = "a layer"
    ) -> None:
        self.layer, self.gates, self.where = layer, gates, where
        width = layer.weight[0].numel() + (layer.bias is not None)
        self.weights = None if gates is None else gates.square().mean(1)  # (N,)
        self.xx = torch.zeros(width, width, dtype=torch.float64)
        self.yx = torch.zeros(len(layer.weight), width, dtype=torch.float64)
        self.rows = 0  # draws x tokens seen
        self.sample: list[tuple[Tensor, Tensor]] = []
        self._stride = max(1, draws // SAMPLED)
        self._positions = torch.linspace(0, tokens - 1, min(tokens, max(1, SAMPLED // draws))).long()

    def add(self, features: Tensor, missing: Tensor, draws: slice) -> None:
        """A chunk: features (B, T, D), what is missing of the stream (B, T, H), and which of all draws these are."""
        wide = self._wide(features.float())
        weighted, goal = wide, missing.float()
        if self.gates is not None and self.weights is not None:
            gate = self.gates[draws][:, None].to(wide)
            weighted, goal = wide * self.weights[draws][:, None, None].to(wide), goal * gate
            chosen = (torch.arange(draws.start, draws.stop) % self._stride == 0).nonzero()[:, 0]
            at = (self._positions + chosen[:, None] + draws.start) % wide.shape[1]  # (K, S), other tokens in every draw
            self.sample.append(
                (wide[chosen[:, None], at].flatten(0, 1), gate[chosen].expand(-1, at.shape[1], -1).flatten(0, 1))
            )
        flat = wide.flatten(0, 1)
        self.xx += (weighted.flatten(0, 1).mT @ flat).cpu().double()
        self.yx += (goal.flatten(0, 1).mT @ flat).cpu().double()
        self.rows += len(flat)

    def solve(self, penalty: float) -> Tensor:
        """The addition to the layer (H, D), the bias in the last column. penalty: ridge, times the mean of the
        features' power; it grows where rows are too few, as CrossMoments.ridge's does. Raises SK0204 for values that
        are not finite."""
        bad = int((~self.xx.isfinite()).sum() + (~self.yx.isfinite()).sum())
        if bad:
            raise SanakitError(
                "SK0204", f"alignment of {self.where}: {bad} sums of its features and its stream are not finite"
            )
        width = len(self.xx)
        penalty = max(penalty, 0.1 * (ENOUGH * width / self.rows - 1))
        ridge = (penalty * self.xx.diagonal().mean()).clamp_min(1e-12)
        step = torch.linalg.solve(self.xx + ridge * torch.eye(width, dtype=torch.float64), self.yx.mT).mT
        return step if self.gates is None else step * self._lengths(step)[:, None]

    @torch.no_grad()
    def apply(self, step: Tensor) -> None:
        addition = step.to(self.layer.weight)
        if self.layer.bias is not None:
            self.layer.bias += addition[:, -1]
            addition = addition[:, :-1]
        self.layer.weight += addition.reshape(self.layer.weight.shape)

    def _lengths(self, step: Tensor) -> Tensor:
        """Of the step of every channel, the one that leaves least of what is missing. (H,)"""
        power, rows = torch.zeros(len(step), dtype=torch.float64), 0
        for features, gates in self.sample:
            power += (gates * (features @ step.to(features).mT)).square().sum(0).cpu().double()
            rows += len(features)
        gain = (step * self.yx).sum(1)
        return (gain / (power * self.rows / rows).clamp_min(1e-12)).clamp(0, LONGEST)

    def _wide(self, features: Tensor) -> Tensor:
        return F.pad(features, (0, 1), value=1.0) if self.layer.bias is not None else features
