"""What "as good as the base" means for a swapped system: errors relative to the base's, 1 = the base, per picture.

Velocity losses of two latent spaces cannot be compared, so a VAE swap is measured in pixels: the decoded one-step
clean estimate at matched noise, minus what the VAE's own reconstruction loses anyway (stage component judges that).
A text encoder swap stays in one latent space, but captions move the loss by a few per cent only: its error is counted
in units of the base's prompt gain, so that 1 is the base and 2 the base with somebody else's captions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sanakit.errors import SanakitError
from sanakit.evaluate import HeldOut
from sanakit.vaes import VAE

VAE_TOLERANCE = 1.05  # within 5% of the base's error
TEXT_TOLERANCE = 1.10  # nine tenths of the base's prompt gain recovered
CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Target:
    """measure: "one_step" or "loss". relative error = (measure - floor) / unit. floor, base: (N,) of the held-out
    pictures; base: the base's own relative errors, mean 1. tolerance: mean relative error that counts as reached."""

    measure: str
    floor: np.ndarray
    unit: float
    base: np.ndarray
    tolerance: float

    def relative(self, result: HeldOut) -> np.ndarray:
        """Relative error of every held-out picture. (N,)"""
        values = result.one_step if self.measure == "one_step" else result.losses.mean(0)
        if values is None:
            raise SanakitError("SK0207", "one-step errors were not measured")
        return (values.double().numpy() - self.floor) / self.unit


def vae_target(candidate: VAE, base: VAE, base_result: HeldOut, images: Tensor) -> Target:
    """images: (N, 3, H, W) in [-1, 1], those of `base_result`. Raises SK0207 when the base adds no error of its own."""
    assert base_result.one_step is not None
    own = base_result.one_step.double().numpy() - reconstruction_error(base, images)
    if own.mean() <= 0:
        raise SanakitError("SK0207", "the base's clean estimates are as good as its VAE's reconstructions")
    unit = float(own.mean())
    floor = reconstruction_error(candidate, images)
    return Target(measure="one_step", floor=floor, unit=unit, base=own / unit, tolerance=VAE_TOLERANCE)


def text_target(base_result: HeldOut, base_shuffled: HeldOut) -> Target:
    """From the base's losses with its own and with shuffled captions. Raises SK0503 when captions do not matter to it."""
    own = base_result.losses.mean(0).double().numpy()
    gain = base_shuffled.losses.mean(0).double().numpy() - own
    unit = float(gain.mean())
    if unit <= 2 * gain.std() / len(gain) ** 0.5:
        raise SanakitError(
            "SK0503",
            f"the base's loss rises by {unit:.4f} with shuffled captions, within its noise: it cannot judge an encoder",
        )
    return Target(measure="loss", floor=own - unit, unit=unit, base=np.ones(len(own)), tolerance=TEXT_TOLERANCE)


def reconstruction_error(vae: VAE, images: Tensor) -> np.ndarray:
    """Mean squared error of every reconstructed picture. (N,)"""
    with torch.no_grad():
        parts = [(vae.decode(vae.encode(x)) - x).square().mean((1, 2, 3)) for x in images.split(CHUNK)]
    return torch.cat(parts).double().numpy()
