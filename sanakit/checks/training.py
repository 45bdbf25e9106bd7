"""Gates of the stages smoke and full: progress, the prompt's effect, closeness to the base, drift."""

from typing import Any

import numpy as np

from sanakit.checks.base import GATES, Measurement, NotApplied, interval, mean_of, ratio_interval, rule
from sanakit.checks.evidence import FullEvidence, QualityEvidence, SmokeEvidence

PROGRESS: dict[str, Any] = {
    "code": "SK0502",
    "metric": "held-out loss gained",
    "above": (0, 0),
    "definition": "better than the start, paired",
    "needs": ("start_losses", "end_losses"),
    "hint": "try another learning rate",
}
PROMPT_EFFECT: dict[str, Any] = {
    "code": "SK0503",
    "metric": "prompt gain over the base's",
    "needs": ("prompt_gain", "base_prompt_gain"),
}
NEAR = 1.5  # error, in the base's, that a short race calls near
QUALITY: dict[str, Any] = {
    "code": "SK0504",
    "metric": "error over the base's",
    "needs": ("relative_error", "base_relative_error"),
}


@GATES.register("smoke/progress", title="training lowers the held-out loss", embedded=True)
@rule(**PROGRESS)
def smoke_progress(evidence: QualityEvidence) -> Measurement | NotApplied:
    return _progress(evidence)


@GATES.register("full/progress", title="training lowers the held-out loss", embedded=True)
@rule(**PROGRESS)
def full_progress(evidence: QualityEvidence) -> Measurement | NotApplied:
    return _progress(evidence)


def _progress(evidence: QualityEvidence) -> Measurement | NotApplied:
    """Paired over held-out images: the untouched naive start against the end of training; no gain at all is a failure.
    A start that is the base's own quality already has nothing to gain, and where nothing is trained nothing can be
    lowered: there the quality gate decides alone."""
    if evidence.get("start_at_base"):
        return NotApplied("the start is the base's own quality already")
    return mean_of(np.asarray(evidence["start_losses"]) - np.asarray(evidence["end_losses"]))


@GATES.register("smoke/prompt-effect", title="the prompt lowers the loss", embedded=True)
@rule(
    **PROMPT_EFFECT,
    at_least=(0.25, 0.4),
    definition="a tolerance: a quarter of the base's prompt gain, strict two fifths, paired",
)
def smoke_prompt(evidence: SmokeEvidence) -> Measurement | NotApplied:
    """After a short race in other latents, prompts that work too little are inconclusive: the patch embedding and the
    output projection are what is learnt first. Prompts that gain nothing there are judged once the core denoises the
    new latents: one that cannot read them yet cannot place what a prompt asks for."""
    learnt_late = not evidence.get("same_latents", True)
    measured = _prompt(evidence, learnt_late=learnt_late)
    base_reads = interval(evidence["base_prompt_gain"])[1][0] > 0  # else this gate says what is wrong with the base
    nothing_gained = measured.ci is not None and measured.ci[0] <= 0
    if learnt_late and base_reads and nothing_gained and "relative_error" in evidence:
        error, (low, _) = ratio_interval(evidence["relative_error"], evidence["base_relative_error"])
        if low > NEAR:
            return NotApplied(
                f"the core does not denoise the new latents yet (error {error:.2f}, the base is 1, near is below "
                f"{NEAR:g}): a longer race or stage full tells what prompts are worth"
            )
    return measured


@GATES.register("full/prompt-effect", title="the prompt lowers the loss", embedded=True)
@rule(
    **PROMPT_EFFECT,
    at_least=(0.5, 0.7),
    definition="a tolerance: half of the base's prompt gain, strict seven tenths, paired",
)
def full_prompt(evidence: QualityEvidence) -> Measurement:
    return _prompt(evidence, learnt_late=False)


def _prompt(evidence: QualityEvidence, *, learnt_late: bool) -> Measurement:
    """What the candidate's prompts are worth (loss of its best prompt-blind prediction less its own) as a share of what
    the base's are worth, paired over images. A base whose own prompts change nothing beyond its noise cannot tell; one
    whose own prompts raise its loss reads captions of other images, or none. learnt_late: too little is inconclusive,
    if it is above nothing."""
    value, ci = ratio_interval(evidence["prompt_gain"], evidence["base_prompt_gain"])
    worth, (low, high) = interval(evidence["base_prompt_gain"])
    hint = "check null embedding, mask and caption adapter, or raise --budget-steps"
    if low <= 0:
        hint = f"the base's own prompts lower its loss by {worth:.4f} (90% {low:.4f} to {high:.4f}): it cannot tell"
        value, ci = (value, ci) if np.isfinite([value, *ci]).all() else (0.0, (0.0, 0.0))
    if high < 0:
        value, ci = 0.0, (0.0, 0.0)
        hint = (
            f"the base's own prompts raise its loss by {-worth:.4f}: "
            "captions may belong to other images, or it ignores them"
        )
    return Measurement(
        value=value,
        ci=ci,
        samples=len(evidence["prompt_gain"]),
        hint=hint,
        decidable=low > 0 or high < 0,
        advisory=learnt_late and ci[0] > 0,
    )


@GATES.register("smoke/control", title="the encoder is worth more than one with random weights", embedded=True)
@rule(
    code="SK0517",
    metric="lead over random weights, in the base's prompt gain",
    above=(0, 0.05),
    definition="better than random weights, strict by a twentieth of the base's prompt gain, paired",
    needs=("control_lead",),
    hint="the candidate's weights may not be loaded, or not belong to its tokenizer; a larger --budget-steps",
)
def control(evidence: SmokeEvidence) -> Measurement:
    """Loss of the candidate's class with random weights less the candidate's, after the same few steps, paired over
    images, in units of the base's prompt gain."""
    return mean_of(evidence["control_lead"])


@GATES.register("smoke/alignment", title="closed-form alignment starts below naive", embedded=True)
@rule(
    code="SK0506",
    metric="loss saved before any step",
    above=(0, 0),
    definition="better than a fresh start, paired",
    needs=("naive_start_losses", "aligned_start_losses"),
    hint="the two components may not see the same images",
)
def alignment(evidence: SmokeEvidence) -> Measurement:
    return mean_of(np.asarray(evidence["naive_start_losses"]) - np.asarray(evidence["aligned_start_losses"]))


@GATES.register("smoke/within-reach", title="quality comes near the base's", embedded=True)
@rule(
    code=QUALITY["code"],
    metric=QUALITY["metric"],
    at_most=(NEAR, 1.25),
    definition="a tolerance: what a short race calls near",
    needs=(*QUALITY["needs"], "forecast_arrives", "steps_that_tell"),
)
def within_reach(evidence: SmokeEvidence) -> Measurement:
    """Error over the base's (swap/quality.py), paired: near after the budget. A short race can show that the base is
    within reach; it cannot show that it is not, so the rest is inconclusive. A forecast never makes a pass, and an
    error that is near does not pass where the forecast sees no arrival."""
    value, ci = ratio_interval(evidence["relative_error"], evidence["base_relative_error"])
    arrives = bool(evidence["forecast_arrives"])
    hint = f"about --budget-steps {evidence['steps_that_tell']} would tell; or train: sanakit validate --stage full"
    return Measurement(
        value=value,
        ci=ci,
        samples=len(evidence["relative_error"]),
        hint=f"{'forecast to arrive' if arrives else 'no strategy is forecast to arrive'}; {hint}",
        decidable=arrives,
        advisory=True,
    )


@GATES.register("full/quality", title="quality is the base's, within a quarter", embedded=True)
@rule(
    **QUALITY,
    at_most=(1.25, 1.1),
    definition="a tolerance: the base's error and a quarter, strict a tenth",
    hint="train longer: --set train.max_steps=...",
)
def quality(evidence: FullEvidence) -> Measurement:
    value, ci = ratio_interval(evidence["relative_error"], evidence["base_relative_error"])
    return Measurement(value=value, ci=ci, samples=len(evidence["relative_error"]))


@GATES.register("full/latent-drift", title="the latent stream did not drift", embedded=True)
@rule(
    code="SK0206",
    metric="drift alarms",
    at_most=(0, 0),
    definition="none; the monitors bound false alarms by monitors.alpha a run",
    needs=("drift_alarms",),
    hint="data or preprocessing changed during the run",
)
def latent_drift(evidence: FullEvidence) -> float:
    return evidence["drift_alarms"]
