"""Faults of what is read from disk or asked for."""

import copy
import json

from fault_world import World, fault

from sanakit.assembly import LatentDiffusion
from sanakit.config import make_config
from sanakit.contracts import GateResult
from sanakit.loading import load_vae
from sanakit.swap.plan import swap_core
from sanakit.training.checkpoint import preflight
from sanakit.vaes import VAES


@fault(
    "an option accepted and ignored",
    threads="unsloth 6838; SimpleTuner; Sana vae.scale_factor",
    gate="configuration",
    code="SK0104",
    stage="load",
)
def ignored_option(world: World) -> list[GateResult]:
    make_config({"vae": {"name": "dc-f16c16", "scale_factor": 0.41407}})
    return []


@fault("pickled weights", threads="CVE-2025-32434, CVE-2026-24747", gate="loader", code="SK0111", stage="load")
def pickled(world: World) -> list[GateResult]:
    folder = world.fresh("pickled")
    VAES.get("kl-f8c4").tiny().model.save_pretrained(folder, safe_serialization=False)
    load_vae(f"path:{folder}")
    return []


@fault(
    "a repository that runs its own code",
    threads="CVE-2026-4372, CVE-2026-5241",
    gate="loader",
    code="SK0112",
    stage="load",
)
def own_code(world: World) -> list[GateResult]:
    folder = world.fresh("own-code")
    (folder / "config.json").write_text(json.dumps({"_class_name": "MyVAE", "auto_map": {"AutoModel": "vae.MyVAE"}}))
    load_vae(f"path:{folder}")
    return []


@fault(
    "config and weights of different revisions", threads="diffusers 10489", gate="loader", code="SK0107", stage="load"
)
def revisions(world: World) -> list[GateResult]:
    folder = world.fresh("revisions")
    VAES.get("kl-f8c4").tiny().model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    load_vae(f"path:{folder}")
    return []


@fault(
    "a VAE whose grid does not fit the core", threads="SanaPipeline 440", gate="assembly", code="SK0110", stage="load"
)
def grid(world: World) -> list[GateResult]:
    swap_core(replace_size(world.base, 80), world.vae("pca-f32c64"), 0)
    return []


def replace_size(system: LatentDiffusion, size: int) -> LatentDiffusion:
    changed = copy.copy(system)
    changed.image_size = size
    return changed


@fault(
    "dry run passes, the disk is too small for the run",
    threads="torchgeo-bench 404",
    gate="preflight",
    code="SK0903",
    stage="load",
)
def disk(world: World) -> list[GateResult]:
    preflight(world.fresh("disk"), 1 << 48)
    return []
