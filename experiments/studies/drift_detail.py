"""Power and false alarms of `compare` where fine detail changes, on synthetic latents, beside an oracle.

Called by drift_study.py (part `detail`). The oracle knows where the change is: Welch's t at .05 on one statistic, the
mean log power of the highest frequencies over all channels; as power or as share of an image's variance, whichever has
the higher power in the cell. `compare` evaluations everywhere and holds .05 over all that it reads.
"""

import json
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft, ndimage, signal, stats

SEED = 2026
ALPHA = 0.05
ROWS = 128  # a side
GEOMETRIES = ((4, 8), (12, 10), (64, 16), (4, 64))  # channels, side
CLEAN_GEOMETRIES = ((4, 8), (12, 10), (64, 8))
CLEAN_ROWS = ((32, 32), (32, 96), (128, 128))


Shift = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
Change = Callable[[np.ndarray], np.ndarray]


def averaged(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Student t values with 3 degrees of freedom, averaged over 3 x 3 neighbours, the edges joined."""
    return ndimage.uniform_filter(generator.standard_t(3, shape), (0, 0, 3, 3), mode="wrap")


def filtered(generator: np.random.Generator, shape: tuple[int, ...], correlation: float, tails: bool) -> np.ndarray:
    """Gaussian values whose neighbours have this correlation; tails: their hyperbolic sine, times a scale of every
    image that makes its values Student t with 4 degrees of freedom."""
    margin = 32
    values = generator.standard_normal((*shape[:2], shape[2] + margin, shape[3] + margin))
    for axis in (2, 3):
        values = signal.lfilter([np.sqrt(1 - correlation**2)], [1, -correlation], values, axis=axis)
    values = values[:, :, margin:, margin:]
    if tails:
        values = np.sinh(values) * np.sqrt(4 / generator.chisquare(4, (shape[0], 1, 1, 1)))
    return values


TEXTURES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "averaged, heavy tails": averaged,
    "smooth, heavy tails": lambda generator, shape: filtered(generator, shape, 0.9, True),
    "smooth, Gaussian": lambda generator, shape: filtered(generator, shape, 0.9, False),
    "rough, heavy tails": lambda generator, shape: filtered(generator, shape, 0.3, True),
}


def noise(values: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """White noise of `strength` of the spread."""
    return values + strength * generator.standard_normal(values.shape)


def blur(values: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Every value gives `strength` of itself to each neighbour, along both sides."""
    kernel = np.array([strength, 1 - 2 * strength, strength])
    for axis in (2, 3):
        values = ndimage.convolve1d(values, kernel, axis=axis, mode="nearest")
    return values


def quantise(values: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Rounded to multiples of `strength` spreads."""
    return np.round(values / strength) * strength


def resample(values: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Moved by `strength` of a pixel along both sides, linear interpolation."""
    for axis in (2, 3):
        following = np.take(values, np.minimum(np.arange(values.shape[axis]) + 1, values.shape[axis] - 1), axis)
        values = (1 - strength) * values + strength * following
    return values


SHIFTS: dict[str, tuple[Shift, float]] = {
    "noise .03": (noise, 0.03),
    "noise .1": (noise, 0.1),
    "blur .01": (blur, 0.01),
    "blur .03": (blur, 0.03),
    "quantisation .1": (quantise, 0.1),
    "quantisation .4": (quantise, 0.4),
    "resampling .02": (resample, 0.02),
    "resampling .1": (resample, 0.1),
}


def draw(texture: str, rows: int, channels: int, side: int, generator: np.random.Generator) -> np.ndarray:
    """(rows, channels, side, side) float32 of unit spread in expectation; the scale of a texture is a constant."""
    values = TEXTURES[texture](generator, (rows, channels, side, side))
    return (values / SCALES[texture]).astype(np.float32)


SCALES: dict[str, float] = {}
for _name in TEXTURES:
    SCALES[_name] = float(TEXTURES[_name](np.random.default_rng(SEED), (512, 4, 16, 16)).std())


def oracle(reference: np.ndarray, current: np.ndarray) -> dict[str, bool]:
    statistics: dict[str, list[np.ndarray]] = {"power": [], "share": []}
    for side in (reference, current):
        centred = side - side.mean((2, 3), keepdims=True)
        size = side.shape[-1]
        radius = np.hypot(np.arange(size)[:, None], np.arange(size)[None]) / size
        power = np.log(fft.dctn(centred, axes=(2, 3), norm="ortho")[..., radius > 1] ** 2 + 1e-12).mean((1, 2))
        statistics["power"].append(power)
        statistics["share"].append(power - np.log(centred.var((2, 3)) + 1e-12).mean(1))
    return {name: float(stats.ttest_ind(*sides, equal_var=False).pvalue) <= ALPHA for name, sides in statistics.items()}


class Cell:
    """A reference and the current side before any shift, made when they are first asked for."""

    def __init__(self, texture: str, rows: tuple[int, int], channels: int, side: int, seed: list[int]) -> None:
        self.make = lambda k: draw(texture, rows[k], channels, side, np.random.default_rng([*seed, k]))

    @cached_property
    def reference(self) -> np.ndarray:
        return self.make(0)

    @cached_property
    def current(self) -> np.ndarray:
        return self.make(1)

    @cached_property
    def sample(self) -> Any:
        return sampled(self.reference)


def sampled(values: np.ndarray) -> Any:
    import torch

    from sanakit.drift.sample import sample_latents

    return {"latents": sample_latents(torch.from_numpy(np.ascontiguousarray(values)))}


def alarms(cell: Cell, current: np.ndarray) -> dict[str, Any]:
    """Verdict, the readings that alarm, the likely cause, and what the oracle says."""
    from sanakit.drift.compare import compare

    comparison = compare(cell.sample, sampled(current), alpha=ALPHA)
    names = [r.name for r in comparison.readings if r.alarm]
    cause = next((r.title for r in comparison.readings if r.name == "likely-cause"), "")
    verdict = comparison.verdict == "drift"
    return {"drift": verdict, "readings": names, "cause": cause, "oracle": oracle(cell.reference, current)}


def run(path: Path, repeats: int, clean_repeats: int) -> None:
    """Append one row a comparison to `path`; what is there is not done again. Repeats are the outer loop, so a run that
    is stopped has seen every cell."""
    done = {tuple(row["key"]) for row in read_rows(path)}
    for repeat in range(max(repeats, clean_repeats)):
        for key, cell, change in cells(repeat, repeat < repeats, repeat < clean_repeats):
            if key not in done:
                row = {"key": key, **alarms(cell, change(cell.current))}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


def cells(repeat: int, shifted: bool, clean: bool) -> Iterator[tuple[tuple[Any, ...], Cell, Change]]:
    """(shift, texture, channels, side, rows of both sides, repeat), the cell, and what is done to its current side."""
    for number, texture in enumerate(TEXTURES):
        for channels, side in GEOMETRIES if shifted else ():
            seed = [SEED, 1, number, channels, side, repeat]
            cell = Cell(texture, (ROWS, ROWS), channels, side, seed)
            for place, (shift, (change, strength)) in enumerate(SHIFTS.items()):
                generator = np.random.default_rng([*seed, 2 + place])
                key = (shift, texture, channels, side, ROWS, ROWS, repeat)
                yield key, cell, partial(_changed, change, strength, generator)
        for channels, side in CLEAN_GEOMETRIES if clean else ():
            for rows in CLEAN_ROWS:
                seed = [SEED, 2, number, channels, side, *rows, repeat]
                key = ("none", texture, channels, side, *rows, repeat)
                yield key, Cell(texture, rows, channels, side, seed), lambda values: values


def _changed(shift: Shift, strength: float, generator: np.random.Generator, values: np.ndarray) -> np.ndarray:
    return shift(values, strength, generator).astype(np.float32)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """power: {shift: {texture: {"4 x 8 x 8": {sanakit, oracle, draws}}}}; false_alarms: the same by rows a side, with
    the readings that alarmed."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault(tuple(row["key"][:-1]), []).append(row)
    power: dict[str, Any] = {}
    clean: dict[str, Any] = {}
    for (shift, texture, channels, side, first, second), draws in cells.items():
        rate = float(np.mean([row["drift"] for row in draws]))
        shape = f"{channels} x {side} x {side}"
        if shift == "none":
            named = sorted(name for row in draws for name in row["readings"])
            cell = {"alarm_rate": rate, "draws": len(draws), "readings": named}
            clean.setdefault(texture, {}).setdefault(shape, {})[f"{first} and {second}"] = cell
        else:
            best = max(float(np.mean([row["oracle"][name] for row in draws])) for name in ("power", "share"))
            cell = {"sanakit": rate, "oracle": best, "draws": len(draws)}
            power.setdefault(shift, {}).setdefault(texture, {})[shape] = cell
    none = [row for key, draws in cells.items() if key[0] == "none" for row in draws]
    total = {"draws": len(none), "alarm_rate": float(np.mean([row["drift"] for row in none])) if none else None}
    return {"detail": {"seed": SEED, "rows_a_side": ROWS, "power": power, "false_alarms": clean, "all_clean": total}}
