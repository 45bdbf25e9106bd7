"""What happened to fine detail: one sentence from the power in rings of frequencies and the smallest steps between
neighbours.

White noise adds the same power to every coefficient; sharpening and another resize filter multiply it. Rounded values
lie on a grid, so the smallest steps of most images are one and the same number.
"""

from collections.abc import Mapping

import numpy as np

Blocks = Mapping[str, np.ndarray]

RINGS = ("middle", "fine", "corner")
BLOCKS = ("grain", *RINGS)
SPREAD = ("log-sd", "skewness", "kurtosis")  # what strong noise or blur moves too
ON_A_GRID = 0.2  # share of images with the same smallest step; 0.06 or less where values are not rounded
CELL = 0.01  # of the logarithm of a step: steps as close as this are the same
LOG_CHI_SQUARED = 3.56  # exp(-E log z^2) of a Gaussian z: from the mean log power of white noise to its variance
ALIKE = 2.5  # the power added to two rings differs by at most this factor where it is white noise


def detail_change(before: Blocks, after: Blocks, rings_moved: bool) -> str:
    """A sentence. Blocks of the reference and of the current side; rings_moved: beyond chance, the smallest steps
    aside."""
    grids = [share_on_a_grid(side["grain"]) >= ON_A_GRID for side in (before, after)]
    if grids[0] != grids[1]:
        values = "values" if grids[1] else "the reference's values"
        return f"{values} lie on a grid: quantisation, or a cast to a type of few bits"
    if not rings_moved:
        return "the smallest steps between neighbours changed: weak noise, rounding, denoising or compression"
    change, _ = high_frequencies(before, after)
    told = f"high frequencies hold {np.exp(change):.2g} times their share: "
    if change < 0:
        return f"{told}blur, resampling (a resize, a shift by part of a pixel), denoising or compression"
    first, second = (np.exp(np.median(side["rings"], 0)[1:3]) for side in (before, after))  # shares of fine and corner
    added = LOG_CHI_SQUARED * (second - first)
    if added.min() > 0 and added.max() <= ALIKE * added.min():
        return (
            f"{told}noise was added (about {np.sqrt(added.min()):.1g} of a channel's spread), or images were sharpened"
        )
    return f"{told}images were sharpened or resized with another filter, or noise was added"


def explains_the_spread(before: Blocks, after: Blocks) -> bool:
    """A channel's variance is a mean over frequencies: did it change in the direction of the strongest change among
    high frequencies, and by less?"""
    _, power = high_frequencies(before, after)
    variance = 2 * float(np.median(np.median(after["log-sd"], 0) - np.median(before["log-sd"], 0)))
    return 0 <= variance / power <= 1 if power else False


def high_frequencies(before: Blocks, after: Blocks) -> tuple[float, float]:
    """Change of the log share, and of the log power, of the ring among fine and corner whose share changed most."""
    moved = np.median(after["rings"], 0) - np.median(before["rings"], 0)
    ring = 1 + int(np.abs(moved[1:3]).argmax())
    return float(moved[ring]), float(moved[len(RINGS) + ring])


def detail_of_channel(blocks: Blocks, channel: int) -> dict[str, np.ndarray]:
    """The blocks that `detail_change` reads, of one channel: grain (N, 1), rings (N, 6)."""
    shares = np.stack([blocks[ring][:, channel] for ring in RINGS], 1)
    power = shares + 2 * blocks["log-sd"][:, channel : channel + 1]
    return {"grain": blocks["grain"][:, channel : channel + 1], "rings": np.concatenate([shares, power], 1)}


def share_on_a_grid(log_steps: np.ndarray) -> float:
    """(N, C) -> share of images whose smallest step is the most frequent one, the median over channels."""
    cells = np.round(log_steps / CELL)
    most = [np.unique(channel, return_counts=True)[1].max() for channel in cells.T]
    return float(np.median(most)) / len(log_steps)
