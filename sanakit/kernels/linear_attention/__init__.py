"""ReLU linear attention of the Sana core (arXiv 2410.10629, section 2.2), non-causal, with its normaliser."""

from torch import Tensor

from sanakit.kernels import uses_triton
from sanakit.kernels.linear_attention import naive


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query (B, N, H, D), key and value (B, M, H, D) of one dtype, any strides -> (B, N, H, D), differentiable."""
    if not uses_triton(query):
        return naive.linear_attention(query, key, value)
    from sanakit.kernels.linear_attention.triton import LinearAttention

    return LinearAttention.apply(query, key, value)
