"""Gates of stage component for a text encoder."""

from sanakit.contracts import GateResult
from sanakit.gates.base import GATES, Evidence, gate_result


@GATES.register("component/finite-embeddings", title="embeddings are finite", embedded=True)
def finite_embeddings(evidence: Evidence) -> GateResult | None:
    if "nonfinite_embeddings" not in evidence:
        return None
    return gate_result(
        gate="component/finite-embeddings",
        code="SK0301",
        metric="values not finite",
        value=evidence["nonfinite_embeddings"],
        threshold=0,
        at_least=False,
        hint="run the encoder in fp32",
    )


@GATES.register("component/prompts-differ", title="different prompts have different embeddings", embedded=True)
def prompts_differ(evidence: Evidence) -> GateResult | None:
    if "nearest_cosine" not in evidence:
        return None
    return gate_result(
        gate="component/prompts-differ",
        code="SK0302",
        metric="median cosine of two random prompts",
        value=evidence["nearest_cosine"],
        threshold=0.98,
        at_least=False,
        hint="check layer, pooling and padding side",
    )


@GATES.register("component/padding", title="padding does not change a prompt's embedding", embedded=True)
def padding(evidence: Evidence) -> GateResult | None:
    if "padding_difference" not in evidence:
        return None
    return gate_result(
        gate="component/padding",
        code="SK0303",
        metric="relative change with the neighbours in a batch",
        value=evidence["padding_difference"],
        threshold=1e-3,
        at_least=False,
        hint="pass the attention mask",
    )


@GATES.register("component/truncation", title="few prompts are cut short", embedded=True)
def truncation(evidence: Evidence) -> GateResult | None:
    if "truncated_share" not in evidence:
        return None
    return gate_result(
        gate="component/truncation",
        code="SK0304",
        metric="share of prompts truncated",
        value=evidence["truncated_share"],
        threshold=0.05,
        at_least=False,
        hint="raise max_tokens",
    )
