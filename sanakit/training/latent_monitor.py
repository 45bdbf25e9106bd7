"""The monitor of a run's latents: the data stream, and the clean estimates of the core at little noise."""

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from sanakit.contracts import Reading
from sanakit.drift.stream import ALPHA, Stream
from sanakit.flow import interpolate, predict_clean
from sanakit.training.loop import Batch

LOW_SIGMA = 0.25  # below it a clean estimate should resemble data


class Shared(TypedDict):
    """What the streams of a run have alike."""

    num_evaluations: int
    steps: int
    alpha: float
    grouped: bool


@dataclass
class LatentMonitor:
    """The data stream's latents and the clean estimates. reference: normalised latents (N, C, h, w) of training images,
    drawn at random, one tensor a shape. num_evaluations: in the whole run, `steps` apart. grouped: a step is of one
    aspect bucket."""

    reference: Tensor | list[Tensor]
    num_evaluations: int
    steps: int = 1
    alpha: float = ALPHA
    band: float = 0.5
    grouped: bool = False

    def __post_init__(self) -> None:
        shared = Shared(num_evaluations=self.num_evaluations, steps=self.steps, alpha=self.alpha, grouped=self.grouped)
        self.stream = Stream("latents", self.reference, **shared)
        self.estimates = Stream(
            "generated",
            self.reference,
            still=False,
            band=self.band,
            blocks=("mean", "log-sd"),
            where=f"sigma < {LOW_SIGMA:g}",
            **shared,
        )
        self.reference = []
        self.spread: list[tuple[Tensor, Tensor]] = []  # ratio and sigma of the rows kept

    @torch.no_grad()
    def observe(self, batch: Batch, predicted: Tensor) -> None:
        rows = slice(self.stream.wanted)
        latents, sigmas = batch.latents[rows], batch.sigmas[rows]
        self.stream.observe(latents)
        clean = predict_clean(interpolate(latents, batch.noise[rows], sigmas), predicted[rows], sigmas)
        if len(clean):
            self.spread.append((clean.std((1, 2, 3)) / latents.std((1, 2, 3)).clamp_min(1e-6), sigmas))
        # rows at more noise become NaN and are left out at the evaluation: to select them here would wait for the
        # device
        shape = (-1, *[1] * (clean.ndim - 1))
        self.estimates.observe(clean.masked_fill((sigmas >= LOW_SIGMA).reshape(shape), torch.nan))
        self.estimates.bad = None

    def report(self, step: int) -> list[Reading]:
        readings = self.stream.report(step) + self.estimates.report(step)
        if self.spread:
            ratio, sigma = self._spread()
            for low in (0.0, 0.25, 0.5, 0.75):
                chosen = ratio[(sigma >= low) & (sigma < low + 0.25)]
                if len(chosen):
                    readings.append(
                        Reading(
                            name="clean-estimate-spread",
                            title="spread of clean estimates over the data's",
                            value=chosen.mean().item(),
                            step=step,
                            where=f"sigma {low:g} to {low + 0.25:g}",
                        )
                    )
        self.spread.clear()
        return readings

    def tensors(self) -> dict[str, Tensor]:
        spread = {}
        if self.spread:
            spread = {"monitor.spread": torch.stack(self._spread())}
        return self.stream.tensors("monitor.latents") | self.estimates.tensors("monitor.generated") | spread

    def _spread(self) -> list[Tensor]:
        """Ratios and sigmas of all rows kept, on the CPU, where those that a checkpoint held are."""
        return [torch.cat([part.cpu() for part in parts]).float() for parts in zip(*self.spread, strict=True)]

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.stream.restore(tensors, "monitor.latents")
        self.estimates.restore(tensors, "monitor.generated")
        spread = tensors.get("monitor.spread")
        self.spread = [] if spread is None else [(spread[0], spread[1])]
