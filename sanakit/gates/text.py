"""Gates of stage component for a text encoder; a cause stands before what follows from it."""

import numpy as np

from sanakit.contracts import GateResult
from sanakit.gates.base import GATES, Evidence, gate_result, interval

ONE_VECTOR = 0.9999  # median cosine of two tokens of a prompt: the same vector in every place


def _limit(
    evidence: Evidence, key: str, gate: str, code: str, metric: str, hint: str, *, at_least: bool = False
) -> GateResult | None:
    """The gate of one number, where it was measured."""
    if key not in evidence:
        return None
    return gate_result(gate=gate, code=code, metric=metric, value=evidence[key], at_least=at_least, hint=hint)


@GATES.register("component/finite-embeddings", title="embeddings are finite", embedded=True)
def finite_embeddings(evidence: Evidence) -> GateResult | None:
    return _limit(
        evidence,
        "nonfinite_embeddings",
        "component/finite-embeddings",
        "SK0301",
        "values not finite",
        "run the encoder in fp32",
    )


@GATES.register("component/hidden-states", title="embeddings are hidden states, not logits", embedded=True)
def hidden_states(evidence: Evidence) -> GateResult | None:
    """Width of the embeddings against the model's own hidden width and vocabulary."""
    if "embedding_width" not in evidence:
        return None
    width, hidden, vocabulary = (evidence[k] for k in ("embedding_width", "hidden_width", "vocabulary"))
    return gate_result(
        gate="component/hidden-states",
        code="SK0305",
        metric=f"{width} wide; hidden states {hidden}, vocabulary {vocabulary}",
        value=float(width == vocabulary != hidden),
        at_least=False,
        hint="load the base model, not the one for causal language modelling",
    )


@GATES.register("component/repeatable-embeddings", title="a prompt has the same embedding twice", embedded=True)
def repeatable_embeddings(evidence: Evidence) -> GateResult | None:
    return _limit(
        evidence,
        "embedding_repeat_difference",
        "component/repeatable-embeddings",
        "SK0321",
        "relative change when encoded again",
        "call eval(): dropout is on",
    )


@GATES.register("component/prompts-kept", title="no prompt is embedded as nothing", embedded=True)
def prompts_kept(evidence: Evidence) -> GateResult | None:
    """Zeros, or the null embedding, in a prompt's place: NaNs that somebody replaced, or a dropped caption."""
    return _limit(
        evidence,
        "empty_share",
        "component/prompts-kept",
        "SK0322",
        "share of prompts embedded as zeros or as the null prompt",
        "look for NaN that is replaced by zero, and for captions dropped before encoding",
    )


@GATES.register("component/mask", title="the mask tells words from padding", embedded=True)
def mask(evidence: Evidence) -> GateResult | None:
    return _limit(
        evidence,
        "mask_of_one_word",
        "component/mask",
        "SK0323",
        "share of tokens kept for a one-letter prompt",
        "hand on the tokenizer's attention mask",
    )


@GATES.register("component/padding-side", title="the mask points at the words", embedded=True)
def padding_side(evidence: Evidence) -> GateResult | None:
    """Change the last word: the position that changes most must be one that the mask keeps. Where all tokens of a prompt
    are one vector, all positions change alike and none of them tells: component/tokens-differ judges that."""
    if evidence.get("token_cosine", 0.0) > ONE_VECTOR:
        return None
    return _limit(
        evidence,
        "changes_kept_share",
        "component/padding-side",
        "SK0324",
        "share of changed words that the mask keeps",
        "pad right, or flip the mask with the tokens",
        at_least=True,
    )


@GATES.register("component/padding", title="padding does not change a prompt's embedding", embedded=True)
def padding(evidence: Evidence) -> GateResult | None:
    """The same prompts with less padding behind them."""
    return _limit(
        evidence,
        "padding_difference",
        "component/padding",
        "SK0303",
        "relative change with the amount of padding",
        "pass the attention mask to the model",
    )


@GATES.register("component/instruction", title="the instruction reaches the model", embedded=True)
def instruction(evidence: Evidence) -> GateResult | None:
    return _limit(
        evidence,
        "instruction_effect",
        "component/instruction",
        "SK0325",
        "relative change by the record's instruction",
        "put the instruction before every prompt but the null one",
        at_least=True,
    )


@GATES.register("component/null", title="the null embedding is this encoder's own", embedded=True)
def null(evidence: Evidence) -> GateResult | None:
    return _limit(
        evidence,
        "null_difference",
        "component/null",
        "SK0326",
        "relative distance of the null embedding to the empty prompt",
        "recompute it with this encoder: empty prompt, no instruction",
    )


@GATES.register("component/tokens-differ", title="tokens of a prompt differ", embedded=True)
def tokens_differ(evidence: Evidence) -> GateResult | None:
    return _limit(
        evidence,
        "token_cosine",
        "component/tokens-differ",
        "SK0327",
        "median cosine of two tokens of a prompt",
        "take token embeddings; a pooled vector was repeated",
    )


@GATES.register("component/prompts-differ", title="different prompts have different embeddings", embedded=True)
def prompts_differ(evidence: Evidence) -> GateResult | None:
    return _limit(
        evidence,
        "nearest_cosine",
        "component/prompts-differ",
        "SK0302",
        "median cosine of two random prompts",
        "check layer, pooling and padding side",
    )


@GATES.register("component/words-read", title="a prompt's last word changes its embedding", embedded=True)
def words_read(evidence: Evidence) -> GateResult | None:
    """Exchange the last word of a short prompt: some kept token must change."""
    return _limit(
        evidence,
        "last_word_change",
        "component/words-read",
        "SK0328",
        "largest change of a token with the last word",
        "only the first token or word is read: look at slicing and at max_length of the tokenizer",
        at_least=True,
    )


@GATES.register("component/meaning", title="the encoder finds the words alike that the base's does", embedded=True)
def meaning(evidence: Evidence) -> GateResult | None:
    """Correlation of the two encoders' cosines over pairs of words, less that of the candidate's own class with random
    weights, which tells words apart but not what they mean."""
    if "agreement" not in evidence:
        return None
    own, control = (np.asarray(evidence[key]) for key in ("agreement", "control_agreement"))
    value, ci = interval(own - control)
    return gate_result(
        gate="component/meaning",
        code="SK0329",
        metric=f"agreement {own.mean():.2f} with the base's encoder, less {control.mean():.2f} of random weights",
        value=value,
        ci=ci,
        samples=len(own),
        at_least=True,
        hint="the weights may not be loaded, or the tokenizer is of another model (its token numbers name other words)",
    )


@GATES.register("component/truncation", title="few prompts are cut short", embedded=True)
def truncation(evidence: Evidence) -> GateResult | None:
    """Share of prompts cut short beyond those that the base's own encoder cuts: what the swap loses."""
    if "truncated" not in evidence:
        return None
    total, base = evidence["prompts"], evidence.get("base_truncated", 0)
    value, ci = interval(np.arange(total) < max(0, evidence["truncated"] - base))
    return gate_result(
        gate="component/truncation",
        code="SK0304",
        metric="share of prompts truncated" + (f", beyond the base's {base / total:.3f}" if base else ""),
        value=value,
        ci=ci,
        samples=total,
        at_least=False,
        hint="raise max_tokens",
    )
