"""Which strategy reaches the base's quality at the least cost? Stage smoke: a race under one budget, and its gates."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sanakit.api.components import require_one
from sanakit.api.load import load_text_encoder, load_vae
from sanakit.api.options import as_names, as_seed
from sanakit.api.session import Device, Sections, opened_swap
from sanakit.api.validation import Validation, validation_of
from sanakit.data.cache import Progress
from sanakit.errors import SanakitError
from sanakit.reporting.notebook import fragment
from sanakit.swap.stages import run_stages

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("name", "relative_error", "predicted_steps", "predicted_steps_low", "predicted_steps_high")
PREDICTED = (*SHOWN[2:], "probability_within_horizon")


@dataclass(frozen=True, kw_only=True, repr=False)
class Race:
    """decision: strategy.json as the command line writes it. validation: the gates of stage smoke."""

    decision: Mapping[str, Any]
    validation: Validation

    @property
    def recommendation(self) -> str | None:
        """The strategy that the race recommends."""
        name: str | None = self.decision.get("recommended")
        return name

    @property
    def probability(self) -> float | None:
        """That the recommendation is right, as the race estimates it."""
        value: float | None = self.decision.get("probability")
        return value

    @property
    def forecast(self) -> dict[str, Any]:
        """Of every strategy: steps to the base's quality with their interval, and the probability to reach it within
        the horizon."""
        return {row["name"]: {key: row.get(key) for key in PREDICTED} for row in self.decision["candidates"]}

    @property
    def verdict(self) -> str:
        """pass, fail or inconclusive: the worst of the gates."""
        return self.validation.verdict

    def as_dict(self) -> dict[str, Any]:
        return self.validation.as_dict()

    def table(self) -> "pd.DataFrame":
        """One row a strategy."""
        import pandas as pd

        return pd.DataFrame(self.decision["candidates"])

    def to_frame(self) -> "pd.DataFrame":
        return self.table()

    def __repr__(self) -> str:
        count = len(self.decision["candidates"])
        return f"<Race {self.verdict}: {self.recommendation} of {count} strategies, probability {self.probability}>"

    def _repr_html_(self) -> str:
        shown = [{key: row.get(key) for key in SHOWN} for row in self.decision["candidates"]]
        told = f"recommended: {self.recommendation}, probability {self.probability}"
        return fragment("Race", self.verdict, [told], shown)


def race(
    base: Any,
    *,
    vae: Any = None,
    text_encoder: Any = None,
    data: Any,
    budget: int | str = "auto",
    strategies: Sequence[str] | None = None,
    seed: int = 0,
    policy: str = "default",
    run_dir: str | os.PathLike[str] | None = None,
    on_step: Progress | None = None,
    sections: Sections | None = None,
    device: Device = "auto",
) -> Race:
    """Train every strategy a little, and say which one to take.

    base, vae, text_encoder, data: as of `swap`. budget: steps of every strategy, or auto. strategies: names of
    `list_strategies`, by default all that serve the swap. run_dir: keeps the run folder. on_step: called with (label,
    done, total). sections: further keys of the configuration, {"train": {"batch_size": 16}}. device: as `--device`.
    Raises SK0104 unless exactly one component is given, SK0512 where every strategy diverged.
    """
    require_one(vae, text_encoder)
    kind, component = ("vae", vae) if vae is not None else ("text_encoder", text_encoder)
    if not isinstance(component, str | os.PathLike):
        component = load_vae(component) if kind == "vae" else load_text_encoder(component)
    more = sections or {}
    if not all(isinstance(section, Mapping) for section in (more, *more.values())):
        fix = 'Give sections={"train": {"batch_size": 16}}.'
        raise SanakitError("SK0104", f"sections is {sections!r:.60}, expected a dictionary of dictionaries", fix=fix)
    smoke: dict[str, Any] = {"budget_steps": budget, **more.get("smoke", {})}
    if strategies is not None:
        smoke["strategies"] = list(as_names("strategies", strategies))
    values = {**more, "smoke": smoke, "train": {"seed": as_seed(seed), **more.get("train", {})}}
    options: dict[str, Any] = {"run_dir": run_dir, "policy": policy, "progress": on_step, "stages": ["smoke"]}
    options["device"] = device
    with opened_swap(base, kind, component, data, sections=values, **options) as swap:
        record = run_stages(swap, ["smoke"])
        return Race(decision=record["strategy"], validation=validation_of(record, run_dir))
