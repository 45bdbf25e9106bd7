"""What is watched while a core trains, and when it speaks.

Two streams. The data stream: latents of a frozen VAE should not drift, so an alarm means that data or preprocessing
changed; alpha is divided by the number of looks, which bounds the false alarms of a whole run by alpha. The generated
stream: spread of one-step clean estimates against the data's, by sigma half; it moves by design and never alarms.
Accumulated between looks; statistics run at a look only.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sanakit.contracts import Reading
from sanakit.drift import DRIFT, latent_features
from sanakit.flow import interpolate, predict_clean
from sanakit.train import Batch

ALPHA = 0.05
STATISTICS = ("welch-max", "gaussian-kl")


@dataclass
class LatentMonitor:
    """reference: normalised latents (N, C, h, w) of the training pictures, one tensor a shape. looks: how often `report`
    will be called."""

    reference: list[Tensor]
    looks: int
    _seen: list[Tensor] = field(default_factory=list)
    _spread: dict[str, list[Tensor]] = field(default_factory=lambda: {"low": [], "high": []})

    def observe(self, batch: Batch, predicted: Tensor) -> None:
        self._seen.append(latent_features(batch.latents))
        clean = predict_clean(interpolate(batch.latents, batch.noise, batch.sigmas), predicted, batch.sigmas)
        ratio = clean.std((1, 2, 3)) / batch.latents.std((1, 2, 3)).clamp_min(1e-6)
        self._spread["low"].append(ratio[batch.sigmas < 0.5])
        self._spread["high"].append(ratio[batch.sigmas >= 0.5])

    def report(self, step: int) -> list[Reading]:
        current = torch.cat(self._seen).numpy()
        reference = torch.cat([latent_features(part) for part in self.reference]).numpy()
        alpha = ALPHA / (self.looks * len(STATISTICS))
        readings = [replace(DRIFT.get(name)(reference, current, alpha), step=step) for name in STATISTICS]
        for half, label in (("low", "sigma < 0.5"), ("high", "sigma >= 0.5")):
            values = torch.cat(self._spread[half])
            if len(values):
                readings.append(
                    Reading(
                        name="clean-estimate-spread",
                        title="spread of clean estimates over the data's",
                        value=values.mean().item(),
                        step=step,
                        where=label,
                    )
                )
        self._seen.clear()
        for values_of_half in self._spread.values():
            values_of_half.clear()
        return readings
