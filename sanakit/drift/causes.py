"""What may have happened: a mistake that would explain the features that moved, found by undoing it.

The misfit of the sides is the mean over features of the squared z between the means of their normal scores. A mistake
is named where undoing it on the current side leaves no more than random splits of all rows show (or next to nothing of
what moved). Evidence, no proof: other mistakes may leave the same traces.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from sanakit.contracts import Reading
from sanakit.drift.detail import BLOCKS as DETAIL
from sanakit.drift.detail import RINGS, SPREAD, detail_change, detail_of_channel, explains_the_spread
from sanakit.drift.permutation import thin
from sanakit.drift.sample import Sample, subset
from sanakit.drift.statistics.rank_max import normal_scores

Blocks = Mapping[str, np.ndarray]

NAME = "likely-cause"
SPLITS = 199
MOST_ROWS = 1024  # a side
MOVED, LEFT = 0.01, 0.05  # p-values of the misfit before a cause is searched for, and of what may be left of it
HALF, NEARLY_ALL = 0.5, 0.95  # of the misfit above that of random splits
TOLD = 4  # channels
MOST_CHANNELS = 512  # of which an order is searched for: an assignment grows with the cube
FLOOR = 1e-6
IMAGES = 1.5  # times as wide, or 1 / 1.5: images saved at half the size made latents .91 times as wide
LOGS = ("log-sd", "grain")
BY_CHANNEL = (
    "mean",
    "log-sd",
    *DETAIL,
    "skewness",
    "kurtosis",
)  # no quantiles: a shared background is undone only exactly


def likely_cause(reference: Sample, current: Sample) -> Reading | None:
    """The simplest mistake that explains what moved: one scale, signs, order of channels, fine detail of one channel,
    one channel, fine detail, scale and shift of every channel. value: the share that it explains. None where none
    does, or where features overflow."""
    if not (reference.moments and current.moments) or min(len(reference.rows), len(current.rows)) < 2:
        return None
    reference, current = (subset(s, thin(np.arange(len(s.rows)), MOST_ROWS, 0)) for s in (reference, current))
    if not all(np.isfinite(rows).all() for side in (reference, current) for rows in side.blocks.values()):
        return None
    moved = Misfit.of(reference.blocks, current.blocks)
    if moved.p_value > MOVED:
        return None
    for told, left in _mistakes(reference, current, moved):
        explained = 1 - (left.total - left.typical) / (moved.total - moved.typical)
        if explained >= NEARLY_ALL or (explained >= HALF and left.p_value > LEFT):
            return Reading(name=NAME, title=told, value=float(min(1, explained)))
    return None


@dataclass(frozen=True)
class Misfit:
    """z: (columns,) of all blocks, squared, of the sides as they are; splits: (SPLITS, columns) of random ones. blocks:
    whose columns they are."""

    z: np.ndarray
    splits: np.ndarray
    blocks: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, before: Blocks, after: Blocks) -> "Misfit":
        names = [name for name in (*BY_CHANNEL, "norms") if name in before and name in after]
        rows = np.concatenate([np.concatenate([side[n] for n in names], 1) for side in (before, after)])
        scores = normal_scores(rows.astype(np.float32)).astype(np.float64)
        scores = (scores - scores.mean(0)) / np.maximum(scores.std(0), FLOOR)
        count, first = len(scores), len(before[names[0]])
        generator = np.random.default_rng(0)
        current = np.zeros((SPLITS + 1, count))
        current[0, first:] = 1
        for split in current[1:]:
            split[generator.permutation(count)[first:]] = 1
        second = count - first
        z = (current @ scores) ** 2 * (count - 1) / (first * second)  # over random splits its mean is 1
        widths = [before[n].shape[1] for n in names]
        return cls(z[0], z[1:], np.repeat(names, widths), np.concatenate([np.arange(w) for w in widths]))

    def only(self, kept: np.ndarray) -> "Misfit":
        return Misfit(self.z[kept], self.splits[:, kept], self.blocks[kept], self.columns[kept])

    @property
    def total(self) -> float:
        return float(self.z.mean()) if len(self.z) else 0.0

    @property
    def typical(self) -> float:
        return float(self.splits.mean()) if len(self.z) else 0.0

    @property
    def p_value(self) -> float:
        return float((1 + (self.splits.mean(1) >= self.total).sum()) / (1 + SPLITS)) if len(self.z) else 1.0


def _of_scale(scale: float) -> str:
    """What makes all channels wider or narrower: within IMAGES images do it too, beyond only the factor does."""
    if max(scale, 1 / scale) < IMAGES:
        return f"images with {'less' if scale < 1 else 'more'} contrast or detail, or a slightly other scaling factor"
    return "another scaling factor, or one that is left out or applied twice"


def _mistakes(reference: Sample, current: Sample, moved: Misfit) -> Iterator[tuple[str, Misfit]]:
    """What is said of each mistake, and the misfit that stays when it is undone; the simplest first."""
    before, after = reference.blocks, current.blocks
    assert reference.moments and current.moments
    ratio = current.moments.std.numpy() / np.maximum(reference.moments.std.numpy(), FLOOR)

    def undone(scale: Any, shift: Any = 0.0) -> Misfit:
        return Misfit.of(before, undo(after, scale, shift))

    scale = float(np.median(ratio))
    if scale > FLOOR:
        yield f"every channel is {scale:.3g} times as wide: {_of_scale(scale)}", undone(scale)
    signs = _signs(before, after)
    if (signs < 0).any():
        yield f"the sign of {_channels(np.flatnonzero(signs < 0))} is turned", undone(signs)
    if 2 <= reference.channels <= MOST_CHANNELS:
        order = _order(before, after)
        others = np.flatnonzero(order != np.arange(len(order)))
        if len(others) and _repeats(order, others, before, after):
            told = ", ".join(f"{order[c]} stands for {c}" for c in others[:TOLD])
            told += " ..." if len(others) > TOLD else ""
            sorted_back = {k: v[:, order] if k in BY_CHANNEL else v for k, v in after.items()}
            yield f"channels are in another order: {told}", Misfit.of(before, sorted_back)
    by_channel = np.isin(moved.blocks, BY_CHANNEL)
    worst = int(np.argmax(np.bincount(moved.columns[by_channel], moved.z[by_channel])))
    if reference.channels > 2:
        if "rings" in before:
            yield _detail_of_channel(worst, before, after, moved)
        shift = current.moments.mean.numpy() - reference.moments.mean.numpy()
        effect = shift[worst] / max(float(reference.moments.std[worst]), FLOOR)
        yield (
            f"channel {worst} alone: its mean moved by {effect:+.2g} sd and it is {ratio[worst]:.3g} times as wide",
            moved.only(~by_channel | (moved.columns != worst)),
        )
    if "rings" in before:
        rings_moved = moved.only(np.isin(moved.blocks, RINGS)).p_value <= MOVED
        yield (
            f"fine detail: {detail_change(before, after, rings_moved)}",
            moved.only(~np.isin(moved.blocks, DETAIL)),
        )
        if rings_moved and explains_the_spread(before, after):
            yield (
                f"fine detail: {detail_change(before, after, rings_moved)}",
                moved.only(~np.isin(moved.blocks, (*DETAIL, *SPREAD))),
            )
    if (ratio > FLOOR).all():
        shift = current.moments.mean.numpy() - ratio * reference.moments.mean.numpy()
        yield (
            "every channel has a scale and a mean of its own: other latent statistics (mean and std by channel), "
            "or the normalisation is left out",
            undone(ratio, shift),
        )


def _detail_of_channel(channel: int, before: Blocks, after: Blocks, moved: Misfit) -> tuple[str, Misfit]:
    """Fine detail of one channel: what is said, and the misfit without its features of detail."""
    of_channel = np.isin(moved.blocks, BY_CHANNEL) & (moved.columns == channel)
    rings_moved = moved.only(of_channel & np.isin(moved.blocks, RINGS)).p_value <= MOVED
    told = detail_change(detail_of_channel(before, channel), detail_of_channel(after, channel), rings_moved)
    return f"channel {channel} alone, fine detail: {told}", moved.only(~(of_channel & np.isin(moved.blocks, DETAIL)))


def undo(blocks: Blocks, scale: float | np.ndarray, shift: float | np.ndarray = 0.0) -> dict[str, np.ndarray]:
    """Features of (x - shift) / scale, from those of x; scale and shift one for all channels or (C,), no zero."""
    undone = dict(blocks) | {"mean": (blocks["mean"] - shift) / scale}
    undone |= {name: blocks[name] - np.log(np.abs(scale)) for name in LOGS if name in blocks}
    if "skewness" in blocks:
        undone["skewness"] = blocks["skewness"] * np.sign(scale)
    if "norms" in blocks and not np.any(shift):
        undone["norms"] = blocks["norms"] - [np.log(np.abs(scale)).mean(), 0, 0]
    return undone


def _signs(before: Blocks, after: Blocks) -> np.ndarray:
    """(C,): -1 where a turned channel fits better than the channel."""
    channels = before["mean"].shape[1]
    kept, turned = Misfit.of(before, after), Misfit.of(before, undo(after, -1.0))
    of_channels = np.isin(kept.blocks, BY_CHANNEL)
    kept_misfit, turned_misfit = (
        np.bincount(m.columns[of_channels], m.z[of_channels], channels) for m in (kept, turned)
    )
    return np.where(turned_misfit < kept_misfit, -1.0, 1.0)


def _order(before: Blocks, after: Blocks) -> np.ndarray:
    """(C,): the channel of the current side that stands where the reference has channel c."""
    cost = 0.0
    for name in BY_CHANNEL:
        if name in before and name in after:
            first, second = before[name].astype(np.float64), after[name].astype(np.float64)
            spread = first.var(0)[:, None] / len(first) + second.var(0)[None] / len(second)
            cost = cost + (first.mean(0)[:, None] - second.mean(0)[None]) ** 2 / np.maximum(spread, FLOOR**2)
    return linear_sum_assignment(cost)[1]


def _repeats(order: np.ndarray, others: np.ndarray, before: Blocks, after: Blocks) -> bool:
    """Does either half of the rows give the same order? Channels that are alike fit in many orders, by chance."""
    splits = ([{name: rows[first::2] for name, rows in side.items()} for side in (before, after)] for first in (0, 1))
    return all((_order(*half)[others] == order[others]).all() for half in splits)


def _channels(which: np.ndarray) -> str:
    told = ", ".join(map(str, which[:TOLD])) + (f" and {len(which) - TOLD} more" if len(which) > TOLD else "")
    return f"channel{'s' if len(which) > 1 else ''} {told}"
