"""Content hashes of modules and records: what caches and run folders are keyed by. Only modules need torch."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def hash_module(module: "nn.Module", *facts: str) -> str:
    """SHA-256 over every parameter and buffer (name, dtype, shape, bytes) and further facts."""
    return hash_tensors(module.state_dict(), *facts)


def hash_tensors(tensors: "dict[str, Tensor]", *facts: str) -> str:
    """SHA-256 over tensors by name (name, dtype, shape, bytes) and further facts."""
    import torch

    digest = hashlib.sha256("\0".join(facts).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_record(record: Any) -> str:
    """SHA-256 of a JSON-able record, keys sorted."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()
