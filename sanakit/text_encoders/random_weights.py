"""A model's twin with drawn weights: the control that tells what an architecture gives before any training."""

from copy import deepcopy
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from sanakit.hashing import hash_record


def redrawn(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture, precision and device with weights drawn from the seed; `model` stays as it is.

    A transformers model is initialised from its configuration. Of any other module every matrix is drawn from a normal
    distribution of its own standard deviation, and every vector (norms, biases) takes its own mean.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = _from_config(model) if hasattr(model, "_from_config") else _drawn(model)
    return twin.eval().requires_grad_(False)


def _from_config(model: nn.Module) -> nn.Module:
    first = next(model.parameters())
    config = deepcopy(model.config)
    twin: nn.Module = type(model)._from_config(config, dtype=first.dtype)  # type: ignore[attr-defined]
    return twin.to(first.device)


@torch.no_grad()
def _moments(model: nn.Module) -> list[torch.Tensor]:
    """What `_drawn` reads of the weights: of every parameter of numbers its mean and standard deviation. (2,)"""
    numbers = [p.float() for p in model.parameters() if p.is_floating_point()]
    return [torch.stack([p.mean(), p.std(correction=0)]).cpu() for p in numbers]


@torch.no_grad()
def _drawn(model: nn.Module) -> nn.Module:
    twin = deepcopy(model)
    for parameter in twin.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim > 1:
            spread = float(parameter.float().std())
            parameter.copy_(torch.randn(parameter.shape) * spread)
        else:
            parameter.fill_(float(parameter.float().mean()))
    return twin


def architecture(encoder: Any) -> str:
    """What tells two text encoders' twins with random weights apart: class, record,
    tokenizer and the model's shapes."""
    from sanakit.text_encoders.tokenizers import tokenizer_facts

    config: Any = getattr(encoder.model, "config", None)
    shapes = {name: [str(p.dtype), *p.shape] for name, p in encoder.model.state_dict().items()}
    widths = [] if hasattr(encoder.model, "_from_config") else [p.tolist() for p in _moments(encoder.model)]
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    return hash_record(
        [
            type(encoder).__qualname__,
            asdict(encoder.spec),
            tokenizer_facts(getattr(encoder, "tokenizer", None)),
            {key: value for key, value in settings.items() if not key.startswith("_")},
            shapes,
            *widths,
        ]
    )
