"""Triton kernels, one folder an operation: `naive.py` is the specification, `triton.py` the kernel.

The function of a folder takes the kernel on a GPU (or under TRITON_INTERPRET=1) and its specification elsewhere.
"""

import os

import torch
from torch import Tensor

from sanakit.placement import runs_triton


def uses_triton(tensor: Tensor) -> bool:
    """Whether a kernel serves this tensor: half or single precision, on a GPU or in Triton's interpreter."""
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    return runs_triton(tensor.device) or os.environ.get("TRITON_INTERPRET") == "1"
