"""Gates of stage component for a text encoder; a cause stands before what follows from it."""

import numpy as np

from sanakit.checks.base import GATES, Measurement, NotApplied, interval, mean_of, rule
from sanakit.checks.evidence import TextEvidence

ONE_VECTOR = 0.9999  # median cosine of two tokens of a prompt: the same vector in every place


@GATES.register("component/finite-embeddings", title="embeddings are finite", embedded=True)
@rule(
    code="SK0301",
    metric="values not finite",
    at_most=(0, 0),
    definition="none may be NaN or Inf",
    needs=("nonfinite_embeddings",),
    hint="run the encoder in fp32",
)
def finite_embeddings(evidence: TextEvidence) -> float:
    return evidence["nonfinite_embeddings"]


@GATES.register("component/hidden-states", title="embeddings are hidden states, not logits", embedded=True)
@rule(
    code="SK0305",
    at_most=(0, 0),
    definition="the width is the hidden states', not the vocabulary's",
    needs=("embedding_width", "hidden_width", "vocabulary"),
    hint="load the base model, not the one for causal language modelling",
)
def hidden_states(evidence: TextEvidence) -> Measurement:
    """Width of the embeddings against the model's own hidden width and vocabulary."""
    width, hidden, vocabulary = evidence["embedding_width"], evidence["hidden_width"], evidence["vocabulary"]
    metric = f"{width} wide; hidden states {hidden}, vocabulary {vocabulary}"
    return Measurement(value=float(width == vocabulary != hidden), metric=metric)


@GATES.register("component/repeatable-embeddings", title="a prompt has the same embedding twice", embedded=True)
@rule(
    code="SK0321",
    metric="relative change when encoded again",
    at_most=(1e-3, 1e-4),
    definition="numerical identity, the same batch twice",
    needs=("embedding_repeat_difference",),
    hint="call eval(): dropout is on",
)
def repeatable_embeddings(evidence: TextEvidence) -> float:
    return evidence["embedding_repeat_difference"]


@GATES.register("component/prompts-kept", title="no prompt is embedded as nothing", embedded=True)
@rule(
    code="SK0322",
    metric="share of prompts embedded as zeros or as the null prompt",
    at_most=(0, 0),
    definition="none may be lost",
    needs=("empty_share",),
    hint="search for NaN that is replaced by zero, and for captions dropped before encoding",
)
def prompts_kept(evidence: TextEvidence) -> float:
    """Zeros, or the null embedding, in a prompt's place: NaNs that somebody replaced, or a dropped caption."""
    return evidence["empty_share"]


@GATES.register("component/mask", title="the mask tells words from padding", embedded=True)
@rule(
    code="SK0323",
    metric="share of tokens kept for a one-letter prompt",
    at_most=(0.9, 0.7),
    needs=("mask_of_one_word",),
    hint="hand on the tokenizer's attention mask",
)
def mask(evidence: TextEvidence) -> float:
    return evidence["mask_of_one_word"]


@GATES.register("component/padding-side", title="the mask points at the words", embedded=True)
@rule(
    code="SK0324",
    metric="share of changed words that the mask keeps",
    at_least=(0.5, 0.75),
    needs=("changes_kept_share",),
    hint="pad right, or flip the mask with the tokens",
)
def padding_side(evidence: TextEvidence) -> float | NotApplied:
    """Change the last word: the position that changes most must be one that the mask keeps. Where all tokens of a
    prompt are one vector, all positions change alike and none of them tells: component/tokens-differ decides that."""
    if evidence.get("token_cosine", 0.0) > ONE_VECTOR:
        return NotApplied("all tokens of a prompt are one vector, so every position changes alike")
    return evidence["changes_kept_share"]


@GATES.register("component/padding", title="padding does not change a prompt's embedding", embedded=True)
@rule(
    code="SK0303",
    metric="relative change with the amount of padding",
    at_most=(0.06, 0.03),
    needs=("padding_difference",),
    hint="pass the attention mask to the model",
)
def padding(evidence: TextEvidence) -> float:
    """The same prompts with less padding behind them."""
    return evidence["padding_difference"]


@GATES.register("component/instruction", title="the instruction reaches the model", embedded=True)
@rule(
    code="SK0325",
    metric="relative change by the record's instruction",
    at_least=(1e-3, 1e-2),
    needs=("instruction_effect",),
    hint="put the instruction before every prompt but the null one",
)
def instruction(evidence: TextEvidence) -> float:
    return evidence["instruction_effect"]


@GATES.register("component/null", title="the null embedding is this encoder's own", embedded=True)
@rule(
    code="SK0326",
    metric="relative distance of the null embedding to the empty prompt",
    at_most=(0.15, 0.07),
    needs=("null_difference",),
    hint="recompute it with this encoder: empty prompt, no instruction",
)
def null(evidence: TextEvidence) -> float:
    return evidence["null_difference"]


@GATES.register("component/tokens-differ", title="tokens of a prompt differ", embedded=True)
@rule(
    code="SK0327",
    metric="median cosine of two tokens of a prompt",
    at_most=(0.99, 0.97),
    needs=("token_cosine",),
    hint="take token embeddings; a pooled vector was repeated",
)
def tokens_differ(evidence: TextEvidence) -> float:
    return evidence["token_cosine"]


@GATES.register("component/prompts-differ", title="different prompts have different embeddings", embedded=True)
@rule(
    code="SK0302",
    metric="median cosine of two random prompts",
    at_most=(0.98, 0.95),
    needs=("nearest_cosine",),
    hint="check layer, pooling and padding side",
)
def prompts_differ(evidence: TextEvidence) -> float:
    return evidence["nearest_cosine"]


@GATES.register("component/words-read", title="a prompt's last word changes its embedding", embedded=True)
@rule(
    code="SK0328",
    metric="largest change of a token with the last word",
    at_least=(0.1, 0.2),
    definition="a tolerance: by a tenth of a token's norm",
    needs=("last_word_change",),
    hint="only the first token or word is read: check slicing and at max_length of the tokenizer",
)
def words_read(evidence: TextEvidence) -> float:
    """Exchange the last word of a short prompt: some kept token must change."""
    return evidence["last_word_change"]


@GATES.register("component/meaning", title="the encoder finds the words alike that the base's does", embedded=True)
@rule(
    code="SK0329",
    at_least=(0.1, 0.15),
    definition="a tolerance: a tenth of correlation above random weights, strict 0.15",
    needs=("agreement", "control_agreement"),
    hint="the weights may not be loaded, or the tokenizer is of another model (its token numbers name other words)",
)
def meaning(evidence: TextEvidence) -> Measurement:
    """Correlation of the two encoders' cosines over pairs of words, less that of the candidate's own class with random
    weights, which tells words apart but not what they mean."""
    candidate, control = np.asarray(evidence["agreement"]), np.asarray(evidence["control_agreement"])
    metric = f"agreement {candidate.mean():.2f} with the base's encoder, less {control.mean():.2f} of random weights"
    return mean_of(candidate - control, metric=metric)


@GATES.register("component/truncation", title="few prompts are cut short", embedded=True)
@rule(
    code="SK0304",
    metric="share of prompts truncated",
    at_most=(0.05, 0.01),
    definition="a tolerance: the share of prompts cut beyond the base's that one bears",
    needs=("truncated", "prompts"),
    hint="raise max_tokens",
)
def truncation(evidence: TextEvidence) -> Measurement:
    """Share of prompts cut short beyond those that the base's own encoder cuts: what the swap loses."""
    total, base = evidence["prompts"], evidence.get("base_truncated", 0)
    value, ci = interval(np.arange(total) < max(0, evidence["truncated"] - base))
    metric = f"share of prompts truncated, beyond the base's {base / total:.3f}" if base else ""
    return Measurement(value=value, ci=ci, samples=total, metric=metric)
