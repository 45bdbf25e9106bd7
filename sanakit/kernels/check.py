"""Compiles every kernel for named targets with no GPU, and says what came out.

    python -m sanakit.kernels.check [--json] [--family]

--family: only what the published models run (bf16, heads of 32).
Registers, spilled bytes and shared memory come from the cubin; tensor-core instructions are counted in the PTX.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime import JITFunction

from sanakit.kernels.glumbconv import triton as glumbconv
from sanakit.kernels.linear_attention import triton as attention

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
HALF, SINGLE = "bf16", "fp32"
FAMILY = ("head 32", "forward", "backward", "input_grad")


def specialisations() -> Iterator[tuple[str, JITFunction, str, dict[str, Any]]]:
    """(label, kernel, input type, compile-time arguments) of the family's shapes."""
    for dtype in (HALF, SINGLE):
        for dim in (32, 72, 112):
            shared = attention.constants(dim, dtype == HALF)
            for name in ("state", "output", "query_grad", "key_value_grad"):
                kernel = getattr(attention, f"{name}_kernel")
                yield f"linear_attention.{name} head {dim}", kernel, dtype, shared
        for backward in (False, True):
            label = "backward" if backward else "forward"
            shared = {"BACKWARD": backward, **glumbconv.TILE}
            yield f"glumbconv.gate {label}", glumbconv.gate_kernel, dtype, shared
        yield "glumbconv.input_grad", glumbconv.input_grad_kernel, dtype, glumbconv.TILE


FLOAT32 = {"STATE", "DSTATE", "DWEIGHT"}
UNIT_STRIDES = {"u_c", "d_c", "g_c", "o_c", "s_w"}  # channels-last convolutions


def compile_kernel(kernel: JITFunction, dtype: str, shared: dict[str, Any], target: GPUTarget) -> CompiledKernel:
    """As a launch of the usual layout would specialise it: aligned pointers and strides, unit strides constant."""
    if target.backend == "hip" and shared.get("PRECISION") == "tf32x3":
        shared = {**shared, "PRECISION": "ieee"}
    options = {key: shared[key] for key in ("num_warps", "num_stages") if key in shared}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in shared:
            signature[name], constants[(index,)] = "constexpr", shared[name]
        elif name in UNIT_STRIDES:
            signature[name], constants[(index,)] = "constexpr", 1
        elif (name.isupper() and len(name) > 1) or name in "KVQGXUD":
            signature[name] = f"*{'fp32' if name in FLOAT32 else dtype}"
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            if "_" in name:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=options)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread and bytes spilled, of an NVIDIA binary."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {"registers": _number_after("REG:", text), "spilled": _number_after("STACK:", text)}


def _number_after(label: str, text: str) -> int:
    """Raises ValueError where cuobjdump does not print it."""
    match = re.search(rf"{label}(\d+)", text)
    if match is None:
        raise ValueError(f"cuobjdump printed no {label} in {text!r:.300}")
    return int(match[1])


def main() -> None:
    rows = []
    for label, kernel, dtype, shared in specialisations():
        if "--family" in sys.argv and (dtype != HALF or not label.endswith(FAMILY)):
            continue
        for name, target in TARGETS.items():
            compiled = compile_kernel(kernel, dtype, shared, target)
            row = {"kernel": label, "dtype": dtype, "target": name, "shared_bytes": compiled.metadata.shared}
            if target.backend == "cuda":
                row |= resources(compiled.asm["cubin"])
                row["tensor_core"] = len(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)", compiled.asm["ptx"]))
            rows.append(row)
            if "--json" not in sys.argv:
                print(*(f"{key}={value}" for key, value in row.items()), flush=True)
    if "--json" in sys.argv:
        print(json.dumps(rows))


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    main()
