"""What a swap would touch, before anything is measured or trained: layers, counts, notes, memory."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sanakit.adapters import adapters_of
from sanakit.api.components import label_of, load_candidate, require_one
from sanakit.api.load import load_base
from sanakit.api.options import as_name
from sanakit.assembly import LatentDiffusion
from sanakit.config import Config
from sanakit.reporting.notebook import fragment
from sanakit.strategies.base import strategy_named
from sanakit.swap.lineup import resting_controls
from sanakit.swap.plan import applicable, describe_plan, swap_core
from sanakit.swap.settings import options_of
from sanakit.text_encoders import TextEncoder
from sanakit.training.estimate import estimate, fake_core
from sanakit.vaes import VAE

if TYPE_CHECKING:
    import pandas as pd

ESTIMATED = ("align+head", "finetune")  # the least and the most that a strategy without low-rank adapters trains


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """kind: vae or text_encoder. groups: of every parameter group {group, action, parameters, parameters_before, note,
    shapes}. strategies: of every strategy that serves the swap, what happens to each group. notes: what else changes.
    memory: bytes of one training step on one device by strategy, at `batch_size`. Nothing was measured, so a plan has
    no verdict; a swap that cannot be built raises SK0110 instead."""

    kind: str
    base: str
    candidate: str
    groups: tuple[Mapping[str, Any], ...]
    strategies: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...]
    memory: Mapping[str, Mapping[str, int]]
    batch_size: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_frame(self) -> "pd.DataFrame":
        """One row a parameter group: action and counts, then what each strategy does to it."""
        import pandas as pd

        return pd.DataFrame(
            [
                {key: value for key, value in group.items() if key != "shapes"}
                | {name: actions[group["group"]] for name, actions in self.strategies.items()}
                for group in self.groups
            ]
        )

    def __repr__(self) -> str:
        changed = [group["group"] for group in self.groups if group["action"] != "keep"]
        told = f"{self.kind} of {self.base} for {self.candidate}; changed: {', '.join(changed) or 'nothing'}"
        return f"<Plan: {told}; {len(self.notes)} notes>"

    def _repr_html_(self) -> str:
        keys = ("group", "action", "parameters_before", "parameters", "note")
        rows = [{key: group[key] for key in keys} for group in self.groups]
        needs = [
            f"{name}: {needs['trained_parameters']:,} parameters trained, {needs['peak'] / 2**20:,.1f} MiB a step of "
            f"{self.batch_size} images"
            for name, needs in self.memory.items()
        ]
        return fragment(f"Swap of {self.base}'s {self.kind} for {self.candidate}", "", [*self.notes, *needs], rows)


def plan(base: Any, *, vae: Any = None, text_encoder: Any = None, adapter: str | None = None) -> Plan:
    """What replacing one component of a base touches. base, vae, text_encoder: what `load_base`, `load_vae` and
    `load_text_encoder` take. adapter: of the interface layers, by default linear ones.

    Raises SK0104 unless exactly one component is given, SK0110 for a swap that cannot be built.
    """
    require_one(vae, text_encoder)
    if adapter is not None:
        as_name("adapter", adapter)
    system, candidate = load_base(base), load_candidate(vae, text_encoder)
    config = Config()
    core = swap_core(system, candidate, config.train.seed, adapter)
    names = applicable(config.smoke.strategies, system, candidate)
    told = describe_plan(system, candidate, core, names, resting_controls(config, names))
    return Plan(
        kind=told["kind"],
        base=system.name or "the base",
        candidate=label_of(candidate),
        groups=tuple(told["groups"]),
        strategies=told["strategies"],
        notes=tuple(told["notes"]),
        memory={name: memory_of(system, candidate, name, config, adapter) for name in ESTIMATED},
        batch_size=config.train.batch_size,
    )


def memory_of(
    system: LatentDiffusion, candidate: VAE | TextEncoder, name: str, config: Config, adapter: str | None
) -> dict[str, int]:
    """`Estimate.as_dict` of one rank that trains the swapped core by a strategy; no weight is allocated."""
    is_vae = isinstance(candidate, VAE)
    core, mode = fake_core(
        dict(system.core.config),
        latents=candidate.spec if isinstance(candidate, VAE) else None,
        text=candidate.spec if isinstance(candidate, TextEncoder) else None,
        adapters=adapters_of(system.core),
        adapter=adapter,
        base_ratio=system.vae.spec.spatial_compression_ratio,
        image_size=system.image_size,
    )
    strategy = strategy_named(name)
    latents = (candidate if isinstance(candidate, VAE) else system.vae).spec
    encoder = system.text_encoder if is_vae else candidate
    assert isinstance(encoder, TextEncoder)
    return estimate(
        core,
        mode,
        strategy,
        options_of(config, strategy),
        latent_shape=latents.shape(system.image_size, system.image_size),
        caption_length=encoder.spec.max_tokens,
        world_size=1,
    ).as_dict()
