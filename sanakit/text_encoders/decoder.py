"""Configurations that decoder-only families share: grouped-query attention, a gated MLP."""

from typing import Any


def decoder(
    width: int, inner: int, *, layers: int, heads: int, groups: int, vocab: int, head_dim: int | None = None
) -> dict[str, Any]:
    """inner: width of the MLP. groups: key and value heads."""
    config = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocab,
        "pad_token_id": 0,
    }
    return config if head_dim is None else {**config, "head_dim": head_dim}


SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
