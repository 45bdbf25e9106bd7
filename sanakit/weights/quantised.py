"""Weights that bitsandbytes has quantised to 8 or 4 bits (arXiv 2208.07339, 2305.14314), read as the numbers that they
stand for.

A layer of 4 bits computes with these numbers in bitsandbytes too. One of 8 bits also rounds what it is given
(LLM.int8), which is left out here. The model then is one as any other: it goes to every device, and is exported in
floating point.
"""

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from sanakit.errors import SanakitError
from sanakit.files import refuse_quantised
from sanakit.weights.find import TRANSFORMERS, find_weights, said

BITSANDBYTES = "bitsandbytes"
SCALES = (".absmax", ".SCB")  # endings of the tensors that hold them


def accepted_quantisation(folder: Path, config: dict[str, Any]) -> str:
    """`bitsandbytes_of` a text encoder's folder. Raises SK0120 for weights that were quantised in another way, or are
    not what config.json says; SK0901 where the package is missing."""
    label = bitsandbytes_of(config)
    if label:
        require_bitsandbytes(folder, label)
        check_quantised(folder, label, find_weights(folder, TRANSFORMERS, quantised=True).shapes)
    else:
        refuse_quantised(folder, config)
    return label


def bitsandbytes_of(config: dict[str, Any]) -> str:
    """What config.json says bitsandbytes has made of the weights, such as `bitsandbytes nf4`; empty where it did not
    quantise them."""
    stated = config.get("quantization_config")
    if not isinstance(stated, dict) or stated.get("quant_method") != BITSANDBYTES:
        return ""
    if stated.get("load_in_4bit"):
        return f"{BITSANDBYTES} {stated.get('bnb_4bit_quant_type', 'fp4')}"
    return f"{BITSANDBYTES} int8"


def require_bitsandbytes(folder: Path, label: str) -> None:
    """Raises SK0901 where the package is missing."""
    if importlib.util.find_spec(BITSANDBYTES) is None:
        raise SanakitError(
            "SK0901",
            f"{folder} holds {label} weights: they need the package {BITSANDBYTES}",
            fix=f"pip install {BITSANDBYTES}, or take the repository with the weights in bf16, fp16 or fp32.",
        )


def check_quantised(folder: Path, label: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises SK0120 where the weights are not what config.json says, or are 4-bit ones in the order of the CPU's
    kernels, which bitsandbytes writes after a first pass on a CPU and does not read back: their scales have two
    dimensions."""
    if not any(name.endswith(SCALES) for name in shapes):
        raise SanakitError("SK0120", f"{folder}: config.json says {label}, no tensor of the weights is a scale of it")
    wrong = next((name for name, shape in shapes.items() if name.endswith(".absmax") and len(shape) > 1), None)
    if wrong:
        raise SanakitError(
            "SK0120",
            f"{folder} holds 4-bit weights in the order of the CPU's kernels: {wrong} is {shapes[wrong]}, expected one "
            "dimension",
            cause="The model was saved after it had computed on a CPU; bitsandbytes reads that as other weights.",
            fix="Quantise it again and call `save_pretrained` before it computes anything.",
        )


def dequantised(folder: Path, label: str, model: Any) -> nn.Module:
    """The model with plain layers. Raises SK0120 where bitsandbytes cannot do it on this machine."""
    try:
        plain: nn.Module = model.dequantize()
    except (RuntimeError, NotImplementedError, ValueError, AttributeError, ImportError) as error:
        raise SanakitError(
            "SK0120", f"{folder} holds {label} weights, which cannot be read here: {said(error)}"
        ) from error
    if left := next((name for name, p in plain.named_parameters() if not p.is_floating_point()), None):
        raise SanakitError("SK0120", f"{folder} holds {label} weights: {left} stays quantised")
    return plain
