"""What "as good as the base" means for a swapped system: errors relative to the base's, 1 = the base, per image.

Velocity losses of two latent spaces cannot be compared as they are: one VAE's latents are easier to predict. A VAE swap
is therefore counted in units of the best linear denoiser (Wiener filter) of each space, which has a closed form: a core
is as good as the base where its loss is the same share of that denoiser's loss. How well this agrees with cores trained
from scratch in the candidate's space is measured in docs/strategies.md, beside the alternatives.

A text encoder swap stays in one latent space, but prompts move the loss by a few per cent only, most of it at high
noise. Its error is counted in units of the base's prompt gain, so that 1 is the base and 2 the best prediction that
does not see the prompt (sanakit/evaluation/blind.py): a candidate that ignores every prompt ends there. Each noise
level counts by its share of the base's prompt gain.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sanakit.data.cache import Progress, silent
from sanakit.data.dataset import LatentDataset
from sanakit.errors import SanakitError
from sanakit.evaluation.held_out import HeldOut
from sanakit.flow import EVAL_SIGMAS

VAE_TOLERANCE = 1.05  # within 5% of the base's share
TEXT_TOLERANCE = 1.15  # 85% of the base's prompt gain recovered
SHARED_SIGMAS = (0.5, 0.7, 0.9)  # below them the loss is about a VAE's own fine structure, not about what is drawn
MAX_VALUES = 1152  # of a window that the linear denoiser sees at once
MAX_WINDOWS = 16384
SAMPLED, SEED = 4096, 0  # images whose windows are drawn where there are more than MAX_WINDOWS views
READ_AT_ONCE = 64  # images
COLLAPSED = 1e-9  # variance of a normalised latent


@dataclass(frozen=True, kw_only=True)
class Target:
    """relative error = (sum over EVAL_SIGMAS of weights x loss - floor) / unit. weights: (S,). floor, base: (N,) of the
    held-out images; base: the base's own relative errors, mean 1. tolerance: mean relative error that counts as
    reached. base_weights: (S,) of the base's own losses where its latents are others."""

    measure: str
    weights: np.ndarray
    floor: np.ndarray
    unit: float
    base: np.ndarray
    tolerance: float
    base_weights: np.ndarray | None = None

    def reached(self, result: HeldOut) -> bool:
        """Is the mean relative error within the tolerance?"""
        return bool(self.relative(result).mean() <= self.tolerance * self.base.mean())

    def relative(self, result: HeldOut) -> np.ndarray:
        """Relative error of every held-out image. (N,)"""
        return (self.weights @ result.losses.double().numpy() - self.floor) / self.unit


def vae_target(
    candidate: tuple[LatentDataset, LatentDataset],
    base: tuple[LatentDataset, LatentDataset],
    base_result: HeldOut,
    progress: Progress = silent,
) -> Target:
    """candidate, base: training and held-out images in both spaces; the same pair where no VAE is swapped. progress: of
    reading latents that are encoded as they are read."""
    theirs = wiener_losses(*base, progress=progress)
    ours = theirs if candidate is base else wiener_losses(*candidate, progress=progress)
    sides = [
        np.array([1 / w if s in SHARED_SIGMAS else 0.0 for s, w in zip(EVAL_SIGMAS, losses, strict=True)])
        for losses in (ours, theirs)
    ]
    base_losses = sides[1] @ base_result.losses.double().numpy()
    unit = float(base_losses.mean())
    return Target(
        measure="velocity loss over the best linear denoiser's",
        weights=sides[0],
        base_weights=sides[1],
        floor=np.zeros(len(base_losses)),
        unit=unit,
        base=base_losses / unit,
        tolerance=VAE_TOLERANCE,
    )


def text_target(base: HeldOut, blind: HeldOut, weights: np.ndarray) -> Target:
    """From the base's losses on the held-out images, with their own prompts and prompt-blind
    (sanakit/evaluation/blind.py), and the weights of the noise levels (`prompt_weights`, of other images).
    Raises SK0503 where prompts do not matter to the base."""
    base_losses = weights @ base.losses.double().numpy()
    gain = weights @ blind.losses.double().numpy() - base_losses
    unit = float(gain.mean())
    if not unit > 2 * gain.std() / len(gain) ** 0.5:
        raise SanakitError(
            "SK0503",
            f"the base's loss is {base_losses.mean():.4f} with its prompts and {base_losses.mean() + unit:.4f} "
            f"without, within its noise on {len(gain)} images: it cannot tell how good an encoder is",
        )
    return Target(
        measure="velocity loss in units of the base's prompt gain",
        weights=weights,
        floor=base_losses - unit,
        unit=unit,
        base=np.ones(len(base_losses)),
        tolerance=TEXT_TOLERANCE,
    )


def prompt_weights(base: HeldOut, blind: HeldOut) -> np.ndarray:
    """Share of every noise level in the base's prompt gain, none below 0. (S,), sum 1.
    Raises SK0503 where it has none."""
    gain = (blind.losses - base.losses).double().mean(1).clamp_min(0).numpy()
    if not gain.sum() > 0:
        raise SanakitError(
            "SK0503",
            "the base's loss is no lower with its prompts at any noise level: it cannot tell how good an encoder is",
        )
    return np.asarray(gain / gain.sum())


def wiener_losses(
    train: LatentDataset,
    test: LatentDataset,
    sigmas: tuple[float, ...] = EVAL_SIGMAS,
    progress: Progress = silent,
) -> list[float]:
    """Held-out velocity loss of the best linear denoiser at every sigma.

    z = U diag(l) U^T by the training latents' covariance; the estimate shrinks each direction by its own
    signal-to-noise, and the velocity's error is the clean estimate's over sigma^2. Large latents are read in windows;
    of a data set with more than MAX_WINDOWS of them a sample is read. Raises SK0204, or SK0214 where latents do not
    vary.
    """
    side = _window(train.latents.shape[2], min(train.latents.shape[3:]))
    rows = _sampled_windows(train, side, progress).double()
    mean = rows.mean(0)
    power, directions = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    power = power.clamp_min(0)
    if power.sum() < COLLAPSED:
        raise SanakitError("SK0214", "latents of all images are the same: no quality can be told in them")
    held = _sampled_windows(test, side, progress).double()
    held_power = ((held - mean) @ directions).square().mean(0)
    losses = []
    for sigma in sigmas:
        gain = (1 - sigma) * power / ((1 - sigma) ** 2 * power + sigma**2)
        error = (1 - gain * (1 - sigma)) ** 2 * held_power + gain**2 * sigma**2
        losses.append((error / sigma**2).mean().item())
    return losses


def _sampled_windows(data: LatentDataset, side: int, progress: Progress = silent) -> Tensor:
    """(windows, C side side), at most MAX_WINDOWS: as float64 of 1,152 values 151 MB. Where there are more, at places
    drawn from SEED, as parts of an image differ; and where there are more views than that, of SAMPLED images, the
    first of a split, which are a random sample. Raises SK0204."""
    views, height, width = (data.latents.shape[side] for side in (1, 3, 4))
    places = (height // side) * (width // side)
    sampled = len(data) * views > MAX_WINDOWS
    count = min(len(data), SAMPLED) if sampled else len(data)
    kept = min(places, max(1, MAX_WINDOWS // (count * views)) if sampled else -(-MAX_WINDOWS // (count * views)))
    generator = torch.Generator().manual_seed(SEED)
    parts = []
    for start in range(0, count, READ_AT_ONCE):
        latents = data.latents[torch.arange(start, min(start + READ_AT_ONCE, count))].flatten(0, 1)
        if not latents.isfinite().all():
            channel = int((~latents.isfinite()).sum((0, 2, 3)).argmax())
            raise SanakitError("SK0204", f"latents are not finite, most in channel {channel}")
        windows = F.unfold(latents, side, stride=side).permute(0, 2, 1)  # (B views, places, C side side)
        chosen = torch.arange(kept).expand(len(windows), kept)
        if places * count * views > MAX_WINDOWS:
            chosen = torch.rand(len(windows), places, generator=generator).argsort(1)[:, :kept]
        progress("measuring latents", min(start + READ_AT_ONCE, count), count)
        parts.append(windows.gather(1, chosen[..., None].expand(-1, -1, windows.shape[-1])))
    return torch.cat(parts).transpose(0, 1).flatten(0, 1)[:MAX_WINDOWS]


def _window(channels: int, side: int) -> int:
    """The largest divisor of `side` whose square holds at most MAX_VALUES numbers."""
    return max(s for s in range(1, side + 1) if side % s == 0 and (s == 1 or channels * s * s <= MAX_VALUES))
