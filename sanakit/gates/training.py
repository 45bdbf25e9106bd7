"""Gates of the stages smoke and full: progress, the prompt's effect, closeness to the base, drift."""

from dataclasses import replace

import numpy as np

from sanakit.contracts import GateResult, Verdict
from sanakit.gates.base import GATES, Evidence, gate_result, interval, ratio_interval
from sanakit.gates.policy import threshold


@GATES.register("smoke/progress", title="training lowers the held-out loss", embedded=True)
def smoke_progress(evidence: Evidence) -> GateResult | None:
    return _progress(evidence, "smoke/progress")


@GATES.register("full/progress", title="training lowers the held-out loss", embedded=True)
def full_progress(evidence: Evidence) -> GateResult | None:
    return _progress(evidence, "full/progress")


def _progress(evidence: Evidence, gate: str) -> GateResult | None:
    """Paired over held-out images: the untouched naive start against the end of training; no gain at all is a failure. A
    start that is the base's own quality already has nothing to gain, and where nothing is trained nothing can be lowered:
    there the quality gate judges alone."""
    if not {"start_losses", "end_losses"} <= evidence.keys() or evidence.get("start_at_base"):
        return None
    value, ci = interval(np.asarray(evidence["start_losses"]) - np.asarray(evidence["end_losses"]))
    return gate_result(
        gate=gate,
        code="SK0502",
        metric="held-out loss gained",
        value=value,
        ci=ci,
        samples=len(evidence["end_losses"]),
        at_least=True,
        above=True,
        hint="try another learning rate",
    )


@GATES.register("smoke/prompt-effect", title="the prompt lowers the loss", embedded=True)
def smoke_prompt(evidence: Evidence) -> GateResult | None:
    return _prompt(evidence, "smoke/prompt-effect")


@GATES.register("full/prompt-effect", title="the prompt lowers the loss", embedded=True)
def full_prompt(evidence: Evidence) -> GateResult | None:
    return _prompt(evidence, "full/prompt-effect")


def _prompt(evidence: Evidence, gate: str) -> GateResult | None:
    """What the candidate's prompts are worth (loss of its best prompt-blind prediction less its own) as a share of what
    the base's are worth, paired over images. A base whose own prompts change nothing beyond its noise cannot tell; one
    whose own prompts raise its loss reads captions of other images, or none. After a short race in other latents, prompts that
    work too little are inconclusive: the patch embedding and the output projection are what is learnt first."""
    if "prompt_gain" not in evidence:
        return None
    value, ci = ratio_interval(evidence["prompt_gain"], evidence["base_prompt_gain"])
    worth, (low, high) = interval(evidence["base_prompt_gain"])
    hint = "check null embedding, mask and caption adapter, or raise --budget-steps"
    if low <= 0:
        hint = f"the base's own prompts lower its loss by {worth:.4f} (90% {low:.4f} to {high:.4f}): it cannot tell"
        value, ci = (value, ci) if np.isfinite([value, *ci]).all() else (0.0, (0.0, 0.0))
    if high < 0:
        value, ci = 0.0, (0.0, 0.0)
        hint = f"the base's own prompts raise its loss by {-worth:.4f}: captions may belong to other images, or it ignores them"
    weak = (
        gate == "smoke/prompt-effect"
        and not evidence.get("same_latents", True)
        and ci[0] > 0
        and ci[1] < threshold(gate)
    )
    return gate_result(
        gate=gate,
        code="SK0503",
        metric="prompt gain over the base's",
        value=value,
        ci=ci,
        samples=len(evidence["prompt_gain"]),
        at_least=True,
        hint=hint,
        decidable=(low > 0 or high < 0) and not weak,
    )


@GATES.register("smoke/control", title="the encoder is worth more than one with random weights", embedded=True)
def control(evidence: Evidence) -> GateResult | None:
    """Loss of the candidate's class with random weights less the candidate's, after the same few steps, paired over images,
    in units of the base's prompt gain."""
    if "control_lead" not in evidence:
        return None
    value, ci = interval(evidence["control_lead"])
    return gate_result(
        gate="smoke/control",
        code="SK0517",
        metric="lead over random weights, in the base's prompt gain",
        value=value,
        ci=ci,
        samples=len(evidence["control_lead"]),
        at_least=True,
        above=True,
        hint="the candidate's weights may not be loaded, or not belong to its tokenizer; a larger --budget-steps",
    )


@GATES.register("smoke/alignment", title="closed-form alignment starts below naive", embedded=True)
def alignment(evidence: Evidence) -> GateResult | None:
    if "aligned_start_losses" not in evidence or "naive_start_losses" not in evidence:
        return None
    gain = np.asarray(evidence["naive_start_losses"]) - np.asarray(evidence["aligned_start_losses"])
    value, ci = interval(gain)
    return gate_result(
        gate="smoke/alignment",
        code="SK0506",
        metric="loss saved before any step",
        value=value,
        ci=ci,
        samples=len(gain),
        at_least=True,
        above=True,
        hint="the two components may not see the same pictures",
    )


@GATES.register("smoke/within-reach", title="quality comes near the base's", embedded=True)
def within_reach(evidence: Evidence) -> GateResult | None:
    """Error over the base's (swap/quality.py), paired: near after the budget. A short race can show that the base is
    within reach; it cannot show that it is not, so the rest is inconclusive. A forecast never makes a pass, and an error
    that is near does not pass where the forecast sees no arrival."""
    if "relative_error" not in evidence:
        return None
    value, ci = ratio_interval(evidence["relative_error"], evidence["base_relative_error"])
    arrives = bool(evidence["forecast_arrives"])
    hint = f"about --budget-steps {evidence['steps_that_tell']} would tell; or train: sanakit validate --stage full"
    result = gate_result(
        gate="smoke/within-reach",
        code="SK0504",
        metric="error over the base's",
        value=value,
        ci=ci,
        samples=len(evidence["relative_error"]),
        at_least=False,
        hint=hint if arrives else f"no strategy is forecast to arrive; {hint}",
        decidable=arrives,
    )
    if result.verdict != Verdict.FAIL:
        return result
    return replace(result, verdict=Verdict.INCONCLUSIVE, hint=f"forecast to arrive; {hint}")


@GATES.register("full/quality", title="quality is the base's, within a quarter", embedded=True)
def quality(evidence: Evidence) -> GateResult | None:
    if "relative_error" not in evidence:
        return None
    value, ci = ratio_interval(evidence["relative_error"], evidence["base_relative_error"])
    return gate_result(
        gate="full/quality",
        code="SK0504",
        metric="error over the base's",
        value=value,
        ci=ci,
        samples=len(evidence["relative_error"]),
        at_least=False,
        hint="train longer: --set train.max_steps=...",
    )


@GATES.register("full/latent-drift", title="the latent stream did not drift", embedded=True)
def latent_drift(evidence: Evidence) -> GateResult | None:
    if "drift_alarms" not in evidence:
        return None
    return gate_result(
        gate="full/latent-drift",
        code="SK0206",
        metric="drift alarms",
        value=evidence["drift_alarms"],
        at_least=False,
        hint="data or preprocessing changed during the run",
    )
