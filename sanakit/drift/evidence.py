"""What a page about one comparison shows: effects by channel, spectra, two components, the rows that differ most."""

from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from sanakit.drift.compare import project
from sanakit.drift.features import STRUCTURED
from sanakit.drift.permutation import thin
from sanakit.drift.sample import Sample
from sanakit.drift.snapshot import SHOWN_ROWS
from sanakit.drift.spectra import steps
from sanakit.drift.statistics.rank_max import normal_scores

SHOWN = 8  # rows a side
LABELS = {
    "log-sd": "spread",
    "low": "5% quantile",
    "high": "95% quantile",
    "grain": "small steps",
    "middle": "mid freq.",
    "fine": "high freq.",
    "corner": "corner freq.",
}


def evidence(reference: Sample, current: Sample) -> dict[str, Any]:
    """`effects` {feature: one value a channel, in sd of the ranks' normal scores}, `spectra` {side: (frequency, mean
    log10 power) a ring} where 1 is the Nyquist frequency of a side, `points` {side: (first, second component) a row},
    `farthest` {side: [(row, contribution)]}. Points and contributions are of at most 512 rows a side. Parts that the
    samples cannot carry are empty."""
    sides = {"reference": reference, "current": current}
    if min(len(s.rows) for s in sides.values()) < 2 or reference.channels != current.channels:
        return {"effects": {}, "spectra": {}, "points": {}, "farthest": {}}
    effects = {}
    for block in STRUCTURED:
        if block in reference.blocks and block in current.blocks and block != "rings":  # of all channels, not of one
            scores = normal_scores(np.concatenate([reference.blocks[block], current.blocks[block]]))
            first, second = scores[: len(reference.rows)], scores[len(reference.rows) :]
            effects[LABELS.get(block, block)] = (second.mean(0) - first.mean(0)).tolist()
    spectra = {side: _spectrum(s) for side, s in sides.items() if "power" in s.blocks}
    rows = dict(zip(sides, project(reference, current), strict=True))
    if rows["reference"].shape[1] < 2:
        return {"effects": effects, "spectra": spectra, "points": {}, "farthest": {}}
    chosen = {side: thin(np.arange(len(x)), SHOWN_ROWS, 0) for side, x in rows.items()}
    few = {side: rows[side][chosen[side]] for side in sides}
    between = cdist(few["reference"], few["current"])
    farthest = {}
    for side, other in (("reference", between.mean(1)), ("current", between.mean(0))):
        within = cdist(few[side], few[side]).sum(1) / max(1, len(few[side]) - 1)
        gain = other - within  # a row's share of the energy distance: farther from the other side than from its own
        order = np.argsort(-gain)[:SHOWN]
        farthest[side] = [(int(sides[side].rows[chosen[side][i]]), float(gain[i])) for i in order]
    points = {side: few[side][:, :2].round(3).tolist() for side in sides}
    return {"effects": effects, "spectra": spectra, "points": points, "farthest": farthest}


def _spectrum(sample: Sample) -> list[tuple[float, float]]:
    finest = steps(int(sample.facts["height"]), int(sample.facts["width"]))
    power = sample.blocks["power"].mean(0) / np.log(10)
    return [(number / finest, float(value)) for number, value in enumerate(power, 1)]
