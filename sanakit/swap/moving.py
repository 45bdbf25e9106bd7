"""The monitor of a part that is trained: its output moves by design, so it is judged by effect size, never significance.

Two readings against the start: the largest shift of a column's mean, in the start's own standard deviations, and the
ratio of scales. Outside the band the rest of the system, trained on the old distribution, is likely to be lost.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sanakit.contracts import Reading
from sanakit.drift.features import Blocks

SHIFT_BAND = 2.0  # standard deviations over pictures or prompts
SCALE_BAND = 1.5  # and its reciprocal
NAMES = ("moving-shift", "moving-scale")


@dataclass
class MovingMonitor:
    """part: what is watched, for titles. reference: blocks `mean` and `log-sd` (N, D) of the start."""

    part: str
    reference: Blocks
    _seen: list[Tensor] = field(default_factory=list)

    def observe(self, blocks: Blocks) -> None:
        self._seen.append(torch.stack([blocks["mean"], blocks["log-sd"]], 1))

    def report(self, step: int) -> list[Reading]:
        """Readings over what was observed since the last look; none where nothing was."""
        if not self._seen:
            return []
        mean, log_sd = torch.cat(self._seen).double().unbind(1)
        self._seen.clear()
        old = self.reference["mean"].double()
        alive = old.std(0) > 1e-6  # a dead channel has no unit to count a shift in
        shift = (mean.mean(0) - old.mean(0)).abs() / old.std(0).clamp_min(1e-6) * alive
        worst = int(shift.argmax())
        scale = float((log_sd.mean(0) - self.reference["log-sd"].double().mean(0))[alive].mean().exp())
        return [
            Reading(
                name=NAMES[0],
                title=f"{self.part}: largest shift of a mean, in standard deviations at the start",
                value=float(shift[worst]),
                threshold=SHIFT_BAND,
                alarm=bool(shift[worst] > SHIFT_BAND),
                where=f"channel {worst}",
                step=step,
            ),
            Reading(
                name=NAMES[1],
                title=f"{self.part}: scale over the one at the start",
                value=scale,
                threshold=SCALE_BAND,
                alarm=not 1 / SCALE_BAND <= scale <= SCALE_BAND,
                step=step,
            ),
        ]

    def tensors(self) -> dict[str, Tensor]:
        """What was seen since the last look, for a checkpoint."""
        return {"moving.seen": torch.cat(self._seen)} if self._seen else {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        if "moving.seen" in tensors:
            self._seen.append(tensors["moving.seen"])
