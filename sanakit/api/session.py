"""One swap of the engine (sanakit/swap/context.py) from names or live objects, its run folder kept or temporary."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from sanakit import loading
from sanakit.api.load import load_base, load_images, name_of
from sanakit.api.options import as_callback
from sanakit.assembly import LatentDiffusion
from sanakit.checks.policy import gate_names, load_policy
from sanakit.config import Config, make_config
from sanakit.data import ImageDataset
from sanakit.data.cache import Progress, silent
from sanakit.loading import Base
from sanakit.placement import Placement, choose
from sanakit.run import RunFolder
from sanakit.swap.context import Swap
from sanakit.swap.early import NO_BASE, decide_image_size, refuse_few_images
from sanakit.text_encoders import TextEncoder
from sanakit.vaes import VAE

Device: TypeAlias = "str | torch.device"
Sections = dict[str, dict[str, Any]]


@contextmanager
def opened_swap(
    base: Any,
    kind: str,
    component: Any,
    data: Any,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    policy: str = "default",
    progress: Progress | None = None,
    stages: Sequence[str] = (),
    sections: Sections | None = None,
    device: Device = "auto",
) -> Iterator[Swap]:
    """What the command line would open, with objects in the place of what it loads by name.

    base: what `load_base` takes, or None for a component alone. kind: vae or text_encoder. component: its name, or the
    loaded object. data: what `load_images` takes. run_dir: where results stay; None is a folder that is removed
    afterwards. stages: that are about to run. sections: further values of the configuration. device: where the parts
    compute, as `--device`. Raises SK0104 or SK0905 for a device.
    """
    system = None if base is None else load_base(base)
    images = None if isinstance(data, str | os.PathLike) else load_images(data)
    source = os.fspath(data) if images is None else f"object:{images.fingerprint[:16]}"
    config = config_of(system, kind, component, source, sections)
    # the caller may be inside torch.no_grad() or torch.inference_mode(), whose tensors could never be trained
    with tempfile.TemporaryDirectory(prefix="sanakit-") as temporary, torch.inference_mode(False), torch.enable_grad():
        folder = Path(temporary) / "run" if run_dir is None else Path(run_dir).expanduser()
        gate_policy = load_policy(os.fspath(policy), gate_names())
        dtypes: dict[str, Any] = {
            "vae": config.vae.dtype,
            "text_encoder": config.text_encoder.dtype,
            "base": config.base_dtype,
        }
        swap = Swap(
            config=config,
            run=RunFolder(folder, config),
            progress=as_callback("on_step", progress) or silent,
            policy=gate_policy,
            placement=choose(str(device), **dtypes),
        )
        place_objects(swap, system, component, images)
        swap.config = config = decide_image_size(config, swap.base.card.get("image_size"))
        for part in (swap.candidate, swap.images):  # refused before there is a run folder
            assert part is not None
        swap.run = RunFolder.open(config, folder, stages, swap.resolved)
        swap.config = swap.run.config
        yield swap


def config_of(
    system: LatentDiffusion | None, kind: str, component: Any, source: str, sections: Sections | None = None
) -> Config:
    """The configuration that names what was given; an object is named by its contents."""
    values: dict[str, Any] = {
        "base": NO_BASE if system is None else system.name or "object",
        "data": {"source": source},
        kind: {"name": reference_of(component)},
    }
    for name, section in (sections or {}).items():
        values[name] = values.get(name, {}) | section
    return make_config(values)


def place_objects(swap: Swap, system: LatentDiffusion | None, component: Any, images: ImageDataset | None) -> None:
    """Put what is in memory where the engine would load it."""
    if system is not None:
        swap.base = loading.load_base(system.name) if system.name else base_of(system)
        swap.base_system = placed(system, swap.placement, "base")
    if isinstance(component, VAE | TextEncoder):
        swap.candidate = component
    if images is not None:
        refuse_few_images(images)
        swap.images = images


def placed(system: LatentDiffusion, placement: Placement, part: str = "") -> LatentDiffusion:
    """The same modules, computing where the placement says; on the CPU the system itself."""
    return replace(system, placement=placement, part=part) if placement.accelerated else system


def base_of(system: LatentDiffusion) -> Base:
    """The record of a base that was put together in memory."""
    card = {
        "vae": reference_of(system.vae),
        "text_encoder": reference_of(system.text_encoder),
        "image_size": system.image_size,
        "flow_shift": system.flow_shift,
    }
    return Base(name="object", folder=Path(), card=card)


def reference_of(component: Any) -> str:
    """A name as it was given; of an object its class and the beginning of its fingerprint."""
    if isinstance(component, str | os.PathLike):
        return name_of(component)
    return f"object:{type(component.model).__name__}-{component.fingerprint()[:12]}"
