"""The fit of the forecast's law (sanakit/swap/slope_law.py) to the decision study's curves.

From every finished curve: pairs of a race's end and a later evaluation. The slope between them is regressed on what the
race had shown, by ridge. Scales are the maximum of a t likelihood of the errors that the regression makes on swaps that
it did not see (jackknife over swaps). The floor of a kind of swap is the one of FLOORS whose predictions of left-out
errors are likeliest.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import minimize

from sanakit.swap.slope_law import (
    OFFSET,
    TAIL,
    Curve,
    SlopeLaw,
    features,
    group_of,
    log_excess,
    magnified,
)

RIDGE = 3.0  # the penalty, on standardised features: the prior is that none of them matters
ENDS = (25, 400)  # steps of a race's end, first and last
FACTORS = (2, 4, 8, 16)  # how much later the errors to be predicted are
NEARLY = 0.12  # of the logarithm: an evaluation that counts as that much later
SEEN = (0, 12, 25, 50, 100, 200, 400)  # steps that races evaluate; and 1/8, 1/4 and 1/2 of the end
FLOORS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
START = {"vae": 0.95, "text_encoder": 0.95}  # floors that the search begins at
CLIPPED = 3.0  # standard deviations: a single outlier does not make a correlation
GROUPS = ("trained", "fresh")


@dataclass(frozen=True, kw_only=True)
class StudyCurve:
    """One strategy of one swap, run to its end. kind: "vae" or "text_encoder". target: the relative error to be
    reached."""

    swap: str
    base: str
    seed: int
    kind: str
    target: float
    curve: Curve

    @property
    def run(self) -> str:
        return f"{self.swap} seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A race's end and a later evaluation of one curve. row: features. slope: that followed. reach: logarithm of
    later steps over the race's. errors: at both."""

    of: StudyCurve
    end: int
    factor: int
    row: np.ndarray
    slope: float
    reach: float
    errors: tuple[float, float]


def seen_by(steps: np.ndarray, end: int) -> np.ndarray:
    """Which evaluations a race that ends at `end` has made. (K,) bool"""
    known = [*SEEN, end // 8, end // 4, end // 2]
    return np.asarray([step == end or (step <= end / 1.9 and step in known) for step in steps])


def pairs_of(one: StudyCurve, floor: float) -> list[Pair]:
    steps, errors, pairs = one.curve.steps, one.curve.errors, []
    for j, end in enumerate(steps):
        if not ENDS[0] <= end <= ENDS[1]:
            continue
        seen = seen_by(steps, int(end))
        raced = Curve(
            name=one.curve.name, scope=one.curve.scope, rate=one.curve.rate, steps=steps[seen], errors=errors[seen]
        )
        for factor in FACTORS:
            later = [i for i in range(j + 1, len(steps)) if abs(np.log(steps[i] / (end * factor))) < NEARLY]
            if later:
                reach = float(np.log((steps[later[0]] + OFFSET) / (end + OFFSET)))
                fall = log_excess(errors[j], floor) - log_excess(errors[later[0]], floor)
                pairs.append(
                    Pair(
                        of=one,
                        end=int(end),
                        factor=factor,
                        row=features(raced, one.kind, floor, one.target),
                        slope=float(fall) / reach,
                        reach=reach,
                        errors=(float(errors[j]), float(errors[later[0]])),
                    )
                )
    return pairs


def ridge(rows: np.ndarray, slopes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficients for rows as they are; the penalty is on standardised ones, none on the constant in column 0. (P,)"""
    mean, sd = rows.mean(0), rows.std(0)
    mean[0], sd = 0.0, np.where(sd < 1e-9, 1.0, sd)
    scaled = (rows - mean) / sd
    penalty = RIDGE * np.eye(rows.shape[1])
    penalty[0, 0] = 0.0
    theta = np.linalg.solve(scaled.T @ (weights[:, None] * scaled) + penalty, scaled.T @ (weights * slopes)) / sd
    theta[0] -= mean @ theta
    return np.asarray(theta)


@dataclass(frozen=True, kw_only=True)
class GroupFit:
    """theta, noise by kind and spread of one group; log_likelihood by kind and standardised residuals of left-out
    swaps."""

    theta: np.ndarray
    noise: dict[str, float]
    spread: tuple[float, float]
    log_likelihood: dict[str, float]
    residuals: dict[tuple[str, int, int, str], float]


def fit_group(pairs: Sequence[Pair], floors: dict[str, float]) -> GroupFit:
    counts: dict[int, int] = defaultdict(int)
    for pair in pairs:
        counts[id(pair.of)] += 1
    weights = np.array([1.0 / counts[id(pair.of)] for pair in pairs])
    rows, slopes, reach = (np.array([getattr(p, key) for p in pairs]) for key in ("row", "slope", "reach"))
    swaps = np.array([pair.of.swap for pair in pairs])
    guess = np.zeros(len(pairs))
    for swap in sorted(set(swaps)):
        out = swaps == swap
        if out.all():
            raise ValueError(f"the curves of one swap alone ({swap}) cannot be fitted")
        guess[out] = rows[out] @ ridge(rows[~out], slopes[~out], weights[~out])
    kinds = sorted({pair.of.kind for pair in pairs})
    chosen = np.array([[pair.of.kind == kind for kind in kinds] for pair in pairs], float)
    lifts = np.array([[magnified(e, floors[pair.of.kind]) for e in pair.errors] for pair in pairs])
    off = (slopes - guess) * reach
    falling = np.maximum(guess, 0.0)

    def scale_of(p: np.ndarray) -> np.ndarray:
        noise = (chosen @ np.exp(p[2:])) ** 2 * (lifts**2).sum(1)
        return noise + ((np.exp(p[0]) + np.exp(p[1]) * falling) * reach) ** 2

    def terms(p: np.ndarray) -> np.ndarray:
        scale = scale_of(p)
        return np.log(scale) / 2 + (TAIL + 1) / 2 * np.log1p(off**2 / scale / TAIL)

    first = [-3.0, -2.3, *(np.log(0.01) for _ in kinds)]
    scales = minimize(lambda p: float(weights @ terms(p)), first, method="Nelder-Mead", options={"maxiter": 1500}).x
    told = np.log(lifts[:, 1]) - terms(scales)
    return GroupFit(
        theta=ridge(rows, slopes, weights),
        noise={kind: float(np.exp(v)) for kind, v in zip(kinds, scales[2:], strict=True)},
        spread=(float(np.exp(scales[0])), float(np.exp(scales[1]))),
        log_likelihood={kind: float((weights * chosen[:, i]) @ told) for i, kind in enumerate(kinds)},
        residuals={
            (p.of.run, p.end, p.factor, p.of.curve.name): float(r)
            for p, r in zip(pairs, off / np.sqrt(scale_of(scales)), strict=True)
        },
    )


def fit_law(curves: Sequence[StudyCurve], floors: dict[str, float]) -> SlopeLaw:
    """The law of these curves. Noise of a kind of which a group has no curves is the other group's."""
    fits = {group: fit_group(pairs_in(curves, floors, group), floors) for group in GROUPS}
    return SlopeLaw(
        floors=floors,
        theta={group: fit.theta for group, fit in fits.items()},
        noise={group: fits["trained"].noise | fit.noise for group, fit in fits.items()},
        spread={group: fit.spread for group, fit in fits.items()},
        correlation=correlation_of(fits["trained"].residuals, teachers(curves)),
    )


def pairs_in(curves: Sequence[StudyCurve], floors: dict[str, float], group: str) -> list[Pair]:
    chosen = [one for one in curves if group_of(one.curve.scope) == group]
    return [pair for one in chosen for pair in pairs_of(one, floors[one.kind])]


def teachers(curves: Sequence[StudyCurve]) -> set[str]:
    return {one.curve.name for one in curves if one.curve.scope == "teacher"}


def correlation_of(residuals: dict[tuple[str, int, int, str], float], without: set[str]) -> float:
    """Mean correlation of two strategies' residuals at the same end and reach of one race; each pair of strategies
    counts as often as it was seen. without: strategies that learn from something else than images."""
    by_race: dict[tuple[str, int, int], dict[str, float]] = defaultdict(dict)
    for (run, end, factor, name), residual in residuals.items():
        if name not in without:
            by_race[run, end, factor][name] = float(np.clip(residual, -CLIPPED, CLIPPED))
    seen: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for raced in by_race.values():
        for first, second in combinations(sorted(raced), 2):
            seen[first, second].append((raced[first], raced[second]))
    products = [float(np.corrcoef(np.array(both).T)[0, 1]) * len(both) for both in seen.values() if len(both) > 2]
    return float(np.clip(sum(products) / sum(len(both) for both in seen.values() if len(both) > 2), 0.0, 1.0))


def choose_floors(curves: Sequence[StudyCurve]) -> dict[str, float]:
    """Of every kind the floor of FLOORS under which the errors of left-out swaps are likeliest, the other kind's as
    it was."""
    floors = dict(START)
    for kind in floors:
        told = {floor: log_likelihood(curves, floors | {kind: floor}, kind) for floor in FLOORS}
        floors[kind] = max(told, key=told.__getitem__)
    return floors


def log_likelihood(curves: Sequence[StudyCurve], floors: dict[str, float], kind: str) -> float:
    fits = [fit_group(pairs_in(curves, floors, group), floors) for group in GROUPS]
    return sum(fit.log_likelihood.get(kind, 0.0) for fit in fits)
