"""Streaming second moments of paired rows, and the linear maps that they determine.

Float64 sums, one pass, memory independent of the number of rows; two accumulators merge by addition.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sanakit.errors import SanakitError
from sanakit.placement import precise_dtype

ENOUGH = 4  # rows a dimension; below it, the penalty of ridge grows in proportion


@dataclass
class CrossMoments:
    """Sums over rows x (N, D) and y (N, E): count, sum x, sum y, sum x x^T (D, D), sum y x^T (E, D), sum y^2 (E). On
    the CPU in float64; rows are multiplied where x is."""

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    yx: Tensor
    yy: Tensor

    @classmethod
    def empty(cls, x_size: int, y_size: int) -> "CrossMoments":
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        return cls(0, zeros(x_size), zeros(y_size), zeros(x_size, x_size), zeros(y_size, x_size), zeros(y_size))

    def add(self, x: Tensor, y: Tensor) -> None:
        """x (N, D), y (N, E); raises SK0204 naming the first column with a value that is not finite."""
        exact = precise_dtype(x.device)
        x, y = x.to(exact), y.to(x.device, exact)
        for side, rows in (("candidate", x), ("base", y)):
            bad = (~rows.isfinite()).sum(0)
            if bad.any():
                column = int(bad.argmax())
                raise SanakitError(
                    "SK0204",
                    f"alignment met {int(bad.sum())} values of the {side} that are not finite, most in column {column}",
                )
        self.count += len(x)
        for total, part in (
            (self.x, x.sum(0)),
            (self.y, y.sum(0)),
            (self.xx, x.T @ x),
            (self.yx, y.T @ x),
            (self.yy, y.square().sum(0)),
        ):
            total += part.to(total)

    def merge(self, other: "CrossMoments") -> "CrossMoments":
        """Of the rows of both, for example of two ranks."""
        return CrossMoments(
            self.count + other.count,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.yx + other.yx,
            self.yy + other.yy,
        )

    def select(self, columns: Tensor) -> "CrossMoments":
        """The moments of some columns of x."""
        return CrossMoments(
            self.count, self.x[columns], self.y, self.xx[columns][:, columns], self.yx[:, columns], self.yy
        )

    @property
    def note(self) -> str:
        """What is said where the rows are too few for their dimensions; empty where they are enough."""
        rows, size = self.count, len(self.x)
        return f"{rows} rows for {size} dimensions: the map is shrunk" if rows < ENOUGH * size else ""

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """mean x (D), mean y (E), covariance of x (D, D), of y with x (E, D). Raises SK0403 below two rows."""
        if self.count < 2:
            raise SanakitError("SK0403", f"{self.count} rows cannot determine a linear map, at least 2 are needed")
        mean_x, mean_y = self.x / self.count, self.y / self.count
        cov_xx = self.xx / self.count - torch.outer(mean_x, mean_x)
        return mean_x, mean_y, cov_xx, self.yx / self.count - torch.outer(mean_y, mean_x)

    def ridge(self, penalty: float = 1e-4) -> tuple[Tensor, Tensor]:
        """W (E, D), b (E) minimising |y - W x - b|^2 + lambda |W|^2, lambda = penalty times the mean variance of x.

        With fewer than ENOUGH rows a dimension the penalty grows by how many are missing (see `note`).
        """
        mean_x, mean_y, cov_xx, cov_yx = self.centred()
        penalty = max(penalty, 0.1 * (ENOUGH * len(mean_x) / self.count - 1))
        return _solve(cov_xx, cov_yx, penalty * cov_xx.diagonal().mean(), mean_x, mean_y)

    def procrustes(self) -> tuple[Tensor, Tensor]:
        """Semi-orthogonal R (E, D) nearest to y = R x by SVD of the cross-covariance, and the offset. Isotropic noise
        stays isotropic (R R^T = I for D >= E), so every sigma keeps its meaning."""
        mean_x, mean_y, _, cov_yx = self.centred()
        left, _, right = torch.linalg.svd(cov_yx, full_matrices=False)
        rotation = left @ right
        return rotation.float(), (mean_y - rotation @ mean_x).float()

    def noisy(self, ratio: float, noise_map: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Regression between noised rows, noise over signal power `ratio`: (C_yx + ratio N)(C_xx + ratio I)^-1.

        noise_map N (E, D): how the noise of y comes from that of x; None draws both independently, N = 0. With N the
        Procrustes map the solution runs from clean ridge (ratio 0) to Procrustes (ratio without bound).
        """
        mean_x, mean_y, cov_xx, cov_yx = self.centred()
        goal = cov_yx if noise_map is None else cov_yx + ratio * noise_map.double()
        return _solve(cov_xx, goal, torch.tensor(ratio, dtype=torch.float64), mean_x, mean_y)

    def r2(self, weight: Tensor, offset: Tensor | None = None) -> float:
        """Share of the variance of y that `weight` (E, D) explains, with its own best offset or the one given (E); 0
        where y does not vary."""
        mean_x, mean_y, cov_xx, cov_yx = self.centred()
        mapping = weight.double()
        total = (self.yy / self.count - mean_y.square()).sum()
        explained = 2 * (mapping * cov_yx).sum() - ((mapping @ cov_xx) * mapping).sum()
        if offset is not None:
            explained -= (mean_y - mapping @ mean_x - offset.double()).square().sum()
        return (explained / total).item() if total > 1e-12 else 0.0


def _solve(cov_xx: Tensor, cov_yx: Tensor, ridge: Tensor, mean_x: Tensor, mean_y: Tensor) -> tuple[Tensor, Tensor]:
    damped = cov_xx + ridge.clamp_min(1e-12) * torch.eye(len(mean_x), dtype=torch.float64)
    weight = torch.linalg.solve(damped, cov_yx.T).T
    return weight.float(), (mean_y - weight @ mean_x).float()
