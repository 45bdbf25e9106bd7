"""What a page about one comparison shows: effects by channel, spectra, two components, the rows that differ most."""

from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from sanakit.drift.compare import STRUCTURED, project
from sanakit.drift.permutation import thin
from sanakit.drift.rank_max import normal_scores
from sanakit.drift.sample import SHOWN_ROWS, Sample

SHOWN = 8  # rows a side
LABELS = {
    "log-sd": "spread",
    "low": "5% quantile",
    "high": "95% quantile",
    "grain": "small steps",
    "band": "high freq.",
}


def evidence(reference: Sample, current: Sample) -> dict[str, Any]:
    """At most 512 rows a side make the scatter and the contributions. `effects` {feature: one value a channel, in sd of the ranks' normal scores}, `spectra` {side: mean power a band},
    `points` {side: (first, second component) a row}, `shares` of variance, `farthest` {side: [(row, contribution)]}.
    Parts that the samples cannot carry are empty."""
    sides = {"reference": reference, "current": current}
    if min(len(s.rows) for s in sides.values()) < 2 or reference.channels != current.channels:
        return {"effects": {}, "spectra": {}, "points": {}, "farthest": {}}
    effects = {}
    for block in STRUCTURED:
        if block in reference.blocks and block in current.blocks:
            scores = normal_scores(np.concatenate([reference.blocks[block], current.blocks[block]]))
            first, second = scores[: len(reference.rows)], scores[len(reference.rows) :]
            effects[LABELS.get(block, block)] = (second.mean(0) - first.mean(0)).tolist()
    spectra = {side: s.blocks["power"].mean(0).tolist() for side, s in sides.items() if "power" in s.blocks}
    rows = dict(zip(sides, project(reference, current), strict=True))
    if rows["reference"].shape[1] < 2:
        return {"effects": effects, "spectra": spectra, "points": {}, "farthest": {}}
    chosen = {side: thin(np.arange(len(x)), SHOWN_ROWS, 0) for side, x in rows.items()}
    few = {side: rows[side][chosen[side]] for side in sides}
    between = cdist(few["reference"], few["current"])
    farthest = {}
    for side, other in (("reference", between.mean(1)), ("current", between.mean(0))):
        own = cdist(few[side], few[side]).sum(1) / max(1, len(few[side]) - 1)
        gain = other - own  # a row's share of the energy distance: farther from the other side than from its own
        order = np.argsort(-gain)[:SHOWN]
        farthest[side] = [(int(sides[side].rows[chosen[side][i]]), float(gain[i])) for i in order]
    points = {side: few[side][:, :2].round(3).tolist() for side in sides}
    return {"effects": effects, "spectra": spectra, "points": points, "farthest": farthest}
