"""Content hashes of modules and records: what caches and run folders are keyed by. Only modules need torch."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

IDLE = {  # keys of a configuration that no encoding depends on; a VAE's normalisation is applied late
    "architectures",
    "dtype",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "latents_mean",
    "latents_std",
    "output_attentions",
    "output_hidden_states",
    "quantization_config",
    "return_dict",
    "sample_size",
    "scaling_factor",
    "shift_factor",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


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


def config_facts(model: "nn.Module") -> list[str]:
    """What the configuration of a transformers or diffusers model says that its weights do not, such as the epsilon of
    a norm, as one further fact for `hash_module`: the keys that differ from the class's defaults, so that a key of a
    later library changes nothing. Empty for a model without one. A VAE's normalisation is left out: it is applied late.
    """
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        values, defaults = config.to_dict(), _defaults_of(type(config))
    elif isinstance(config, Mapping):
        parameters = inspect.signature(type(model).__init__).parameters
        defaults = {name: entry.default for name, entry in parameters.items()}
        values = {key: value for key, value in config.items() if key in defaults}  # others touch no weight
    else:
        return []
    stated = _differences(*(json.loads(json.dumps(record, default=str)) for record in (values, defaults)))
    return [hash_record(stated)] if stated else []


def _defaults_of(kind: Any) -> dict[str, Any]:
    """Of a class of configurations; empty for one that cannot be made from nothing."""
    try:
        return dict(kind().to_dict())
    except (TypeError, ValueError, AttributeError):
        return {}


def _differences(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Keys whose values are not the defaults, of records within records too."""
    found = {}
    for key, value in values.items():
        default = defaults.get(key)
        if key in IDLE or key.startswith("_") or value == default:
            continue
        found[key] = _differences(value, default) if isinstance(value, dict) and isinstance(default, dict) else value
    return {key: value for key, value in found.items() if value != {}}
