"""The other drift tools on the draws of drift_study.py; runs in an environment of their own, which has no sanakit.

PEERS/bin/pip install evidently "alibi-detect[torch]"
PEERS/bin/python experiments/studies/drift_peers.py ROWS.jsonl

Every tool gets the latents as arrays, flattened or as channel means and spreads, at alpha .05, in the ways that its
documentation offers for arrays. A row holds the alarm of every way on one draw.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from alibi_detect.cd import ClassifierDrift, CVMDrift, KSDrift, LSDDDrift, MMDDrift
from drift_study import ALPHA, run_draws
from evidently.legacy.calculations.stattests import ks_stat_test
from evidently.legacy.core import ColumnType
from evidently.legacy.metrics.data_drift.embedding_drift_methods import distance, mmd, model, ratio
from sklearn.linear_model import LogisticRegression


def alarms(reference: np.ndarray, current: np.ndarray) -> dict[str, bool]:
    """(n, C, h, w) twice -> alarm of every way, named tool/way."""
    flat = tuple(x.reshape(len(x), -1) for x in (reference, current))
    few = tuple(np.concatenate([x.mean((2, 3)), np.log(x.std((2, 3)) + 1e-6)], 1) for x in (reference, current))
    alarmed = {}
    for label, (first, second) in (("flat", flat), ("moments", few)):
        detectors: dict[str, Callable[[np.ndarray], Any]] = {
            "KSDrift": lambda x: KSDrift(x, p_val=ALPHA),
            "CVMDrift": lambda x: CVMDrift(x, p_val=ALPHA),
            "MMDDrift": lambda x: MMDDrift(x, backend="pytorch", p_val=ALPHA, device="cpu"),
            "LSDDDrift": lambda x: LSDDDrift(x, backend="pytorch", p_val=ALPHA, device="cpu"),
            "ClassifierDrift": lambda x: ClassifierDrift(
                x,
                LogisticRegression(C=0.05, max_iter=200),
                backend="sklearn",
                p_val=ALPHA,
                preds_type="probs",
                train_size=None,
                n_folds=5,
            ),
        }
        for name, make in detectors.items():
            alarmed[f"alibi_detect/{name} {label}"] = bool(make(first).predict(second)["data"]["is_drift"])
        columns = [str(i) for i in range(first.shape[1])]
        frames = [pd.DataFrame(x, columns=columns) for x in (second, first)]
        methods = {"model": model(bootstrap=True), "distance": distance(bootstrap=True), "mmd": mmd(bootstrap=True)}
        for name, method in (methods | {"ratio": ratio()}).items():
            alarmed[f"evidently/embeddings {name} {label}"] = bool(method(*(f.copy() for f in frames))[1])
    p_values = [
        ks_stat_test(pd.Series(few[0][:, i]), pd.Series(few[1][:, i]), ColumnType.Numerical, ALPHA).drift_score
        for i in range(few[0].shape[1])
    ]
    alarmed["evidently/preset, half of the columns"] = bool(np.mean(np.array(p_values) < ALPHA) >= 0.5)
    alarmed["evidently/preset, any column, Bonferroni"] = bool(min(p_values) < ALPHA / len(p_values))
    return alarmed


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    run_draws(Path(sys.argv[1]), alarms)
