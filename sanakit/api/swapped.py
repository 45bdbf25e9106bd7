"""A swapped system before training: the best closed-form start, ready for anybody's own loop, sampler or export."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sanakit.api.components import label_of, require_one
from sanakit.api.load import load_text_encoder, load_vae
from sanakit.api.options import as_name, as_number, as_seed
from sanakit.api.quality import Quality, quality_of
from sanakit.api.session import Device, opened_swap
from sanakit.assembly import LatentDiffusion
from sanakit.core.dit import save_core
from sanakit.data.cache import Progress
from sanakit.errors import SanakitError
from sanakit.formats.pipeline_folder import save_null
from sanakit.interop.export import export_pipeline, refuse_full, save_vae, written_aside
from sanakit.interop.pipeline import SanakitPipeline
from sanakit.reporting.notebook import fragment
from sanakit.sampling import new_scheduler
from sanakit.strategies.base import Strategy, joined_by, strategy_named
from sanakit.swap.context import Swap
from sanakit.swap.encoder_training import save_encoder
from sanakit.swap.start import build_start, choose_start, starting_at
from sanakit.training.loop import layer_groups

AUTO = "finetune"  # what `auto` trains; `sanakit.race` tells which strategy is worth it


@dataclass(frozen=True, kw_only=True, repr=False)
class Swapped:
    """system: base and candidate put together, not trained yet. strategy: how it starts and what it trains. scores:
    what the closed form says of itself (R^2 of every layer that it solved, notes). context: of the engine."""

    system: LatentDiffusion
    strategy: type[Strategy]
    scores: dict[str, Any]
    context: Swap

    @cached_property
    def quality(self) -> Quality:
        """The error relative to the base on the held-out images of the data, of the weights as they were when this was
        first asked for; `sanakit.relative_error` measures anew."""
        return quality_of(self.context, self.system)

    @property
    def verdict(self) -> str:
        """Whether the system is as good as the base already: pass, fail or inconclusive."""
        return str(self.quality.verdict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "strategy": self.strategy.name,
            "start": self.strategy.initialise,
            "scores": self.scores,
            "quality": self.quality.as_dict(),
        }

    def parameter_groups(self, lr: float | None = None, *, layer_decay: float = 1.0) -> list[dict[str, Any]]:
        """For any optimiser: {"params", "lr", "name"} of every group that the strategy trains; all other parameters no
        longer ask for gradients. lr: peak of a group of scale 1, by default the strategy's own. layer_decay: block i of
        L learns at layer_decay ** (L - 1 - i) of it. A strategy with low-rank adapters adds them to the core: ask once.
        Raises SK0104 for a strategy that trains nothing.
        """
        peak = self.strategy.unraced_rate(self.context.config.kind) if lr is None else as_number("lr", lr, above=0)
        core = self.system.core
        groups = layer_groups(core, self.strategy.parameter_groups(core), layer_decay)
        if not groups:
            core.requires_grad_(True)  # as it was: another optimiser may train it
            fix = f"sk.swap(..., strategy={AUTO!r}) begins with the better closed form and trains every layer."
            raise SanakitError("SK0104", f"strategy {self.strategy.name} trains nothing: it has no groups", fix=fix)
        return [{"params": g["params"], "lr": peak * g["scale"], "name": g["name"]} for g in groups]

    def pipeline(self, scheduler: str = "euler") -> SanakitPipeline:
        """A diffusers pipeline over the same modules, so that it samples with what was trained since. scheduler: euler,
        dpm++ or unipc, with the system's flow shift. Raises SK0104."""
        steps = new_scheduler(scheduler, float(self.system.flow_shift or 1.0))
        parts = {"vae": self.system.vae, "text_encoder": self.system.text_encoder, "transformer": self.system.core}
        return SanakitPipeline(**parts, scheduler=steps, image_size=self.system.image_size)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Core, VAE, text encoder and card, as `load_base(path)` and `--base path:DIR` read them. Raises SK0604, or
        SK0606 for a folder that holds something."""
        out, system = Path(folder).expanduser(), self.system
        refuse_full(out)
        self._fold()
        with written_aside(out) as aside:
            save_core(system.core, aside)
            save_null(system.text_encoder, aside)
            save_vae(system.vae, aside / "vae", stock=False)
            card = {
                "recipe": f"sanakit, start {self.strategy.initialise}, strategy {self.strategy.name}",
                "base": self.context.base.name,
                "embedded": self.context.base.embedded,
                "vae": "path:./vae",
                "text_encoder": save_encoder(system.text_encoder, aside),
                "image_size": system.image_size,
                "flow_shift": system.flow_shift,
            }
            (aside / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        return out

    def export(self, folder: str | os.PathLike[str]) -> list[str]:
        """A diffusers pipeline folder; returns why it is not stock, nothing if it is. Raises SK0604, SK0606."""
        out, system = Path(folder).expanduser(), self.system
        refuse_full(out)
        self._fold()
        return export_pipeline(
            out,
            core=system.core,
            vae=system.vae,
            text_encoder=system.text_encoder,
            image_size=system.image_size,
            flow_shift=float(system.flow_shift or 1.0),
        )

    def _fold(self) -> None:
        """Low-rank adapters into the weights: a result is a plain core."""
        if getattr(self.system.core, "peft_config", None):
            self.strategy.finish(self.system.core)

    def _told(self) -> str:
        candidate = label_of(self.context.candidate)
        return f"{self.context.base.name} with {candidate}, started by {self.strategy.initialise}"

    def __repr__(self) -> str:
        return f"<Swapped: {self._told()}; `parameter_groups` are those of {self.strategy.name}>"

    def _repr_html_(self) -> str:
        return fragment("Swapped", self.verdict, [f"{self._told()}, not trained"], [self.quality.as_dict()])


def swap(
    base: Any,
    *,
    vae: Any = None,
    text_encoder: Any = None,
    data: Any,
    strategy: str = "auto",
    adapter: str | None = None,
    seed: int = 0,
    on_step: Progress | None = None,
    device: Device = "auto",
) -> Swapped:
    """Put a component into a base, with interface layers solved in closed form from the images of `data`.

    base, vae, text_encoder, data: what `load_base`, `load_vae`, `load_text_encoder` and `load_images` take; exactly one
    component. strategy: a name of `list_strategies`, which says how the layers start and what `parameter_groups`
    trains; auto is finetune from the better of the two closed forms. adapter: of the interface layers, by default
    linear ones. on_step: called with (label, done, total). device: as `--device`; what is returned lies on the CPU.
    Nothing is trained, and the base stays as it is.

    Raises SK0104 unless exactly one component is given, SK0110 for a swap that cannot be built, SK0403 for fewer
    than 64 images.
    """
    require_one(vae, text_encoder)
    kind, component = ("vae", vae) if vae is not None else ("text_encoder", text_encoder)
    if not isinstance(component, str | os.PathLike):
        component = load_vae(component) if kind == "vae" else load_text_encoder(component)
    named = strategy_named(AUTO if as_name("strategy", strategy) == "auto" else strategy)
    chosen = joined_by(named, as_name("adapter", adapter or "")) if not named.adapter else named
    seed = as_seed(seed)
    sections: dict[str, dict[str, Any]] = {"train": {"seed": seed, "strategy": strategy}}
    with opened_swap(base, kind, component, data, progress=on_step, sections=sections, device=device) as context:
        if kind not in chosen.kinds:
            raise SanakitError("SK0110", f"strategy {chosen.name} serves swaps of {' and '.join(chosen.kinds)} only")
        built: dict[tuple[str, str], Any] = {}

        def started(one: type[Strategy]) -> Any:
            if one.start_key() not in built:
                built[one.start_key()] = build_start(context, one)
            return built[one.start_key()]

        begun = starting_at(chosen, choose_start(context, [chosen], started))
        system, scores = started(begun)
    return Swapped(system=system, strategy=begun, scores=scores, context=context)
