"""A VAE written to a folder in its own format, with the normalisation in force: what `path:FOLDER` reads back."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sanakit.errors import SanakitError
from sanakit.vaes.base import VAE
from sanakit.weights.save import save_model


def write_vae(vae: VAE, folder: Path) -> None:
    """Config and weights. Raises SK0604 for a VAE whose model has no format on disk."""
    if hasattr(vae, "save"):
        vae.save(folder)
    elif hasattr(vae.model, "save_pretrained"):
        _save_model(vae, folder)
    else:
        raise SanakitError("SK0604", f"the VAE {vae.name} is a {type(vae.model).__name__}, which cannot be saved")
    if vae.kept is not None:
        vae.kept.write(folder)


def _save_model(vae: VAE, folder: Path) -> None:
    """`save_pretrained`, with the normalisation where the family's `from_folder` reads it."""
    with _holding(vae.model, vae.stats_buffers()):
        save_model(vae.model, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    vae.write_stats(config)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _holding(model: nn.Module, buffers: dict[str, Tensor]) -> Iterator[None]:
    """The model with these buffers for a while; one that says the same already stays, bit for bit."""
    before = model.state_dict()
    changed = {
        name: tensor.to(before[name].device)
        for name, tensor in buffers.items()
        if not torch.allclose(tensor.to(before[name].device), before[name].float(), rtol=1e-6, atol=1e-7)
    }
    kept = {name: _put(model, name, tensor) for name, tensor in changed.items()}
    try:
        yield
    finally:
        for name, tensor in kept.items():
            _put(model, name, tensor)


def _put(model: nn.Module, name: str, tensor: Tensor | None) -> Tensor | None:
    """Another tensor as a buffer of this name; returns the earlier one. A config key may hide the attribute."""
    owner, _, leaf = name.rpartition(".")
    buffers = model.get_submodule(owner)._buffers
    earlier, buffers[leaf] = buffers[leaf], tensor
    return earlier
