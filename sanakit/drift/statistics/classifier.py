"""Classifier two-sample test (Lopez-Paz and Oquab 2017): can a logistic regression tell the sides apart?

Fitted on one half of the rows, evaluated on the other by AUC; p is that half's Mann-Whitney test, valid because the
score is fixed before those rows are seen.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from sanakit.contracts import Reading
from sanakit.drift.base import DRIFT, tested_reading

MOST_ROWS = 4096


@DRIFT.register("classifier", title="classifier two-sample test", embedded=True)
def classifier(
    reference: np.ndarray, current: np.ndarray, alpha: float, *, names: Sequence[str] = (), seed: int = 0
) -> Reading:
    """value: AUC on held-out rows, .5 where nothing tells the sides apart, with a 95% interval (Hanley and McNeil)."""
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(seed)
    splits = []
    for rows in (reference, current):
        order = generator.permutation(len(rows))[:MOST_ROWS]
        splits.append((rows[order[: len(order) // 2]], rows[order[len(order) // 2 :]]))
    (fit_r, test_r), (fit_c, test_c) = splits
    fitted = np.concatenate([fit_r, fit_c])
    centre, spread = fitted.mean(0), fitted.std(0) + 1e-12
    side = np.repeat([0, 1], [len(fit_r), len(fit_c)])
    model = LogisticRegression(C=0.05, class_weight="balanced", max_iter=500).fit((fitted - centre) / spread, side)
    scores_r, scores_c = (model.decision_function((rows - centre) / spread) for rows in (test_r, test_c))
    result = stats.mannwhitneyu(scores_c, scores_r, alternative="greater")
    auc = float(result.statistic) / (len(test_r) * len(test_c))
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (len(test_c) - 1) * (q1 - auc**2) + (len(test_r) - 1) * (q2 - auc**2)
    error = 1.96 * float(np.sqrt(max(variance, 0) / (len(test_r) * len(test_c))))
    return tested_reading(
        "AUC of a classifier that tells the sides apart",
        auc,
        result.pvalue,
        alpha,
        ci_low=max(0.0, auc - error),
        ci_high=min(1.0, auc + error),
    )
