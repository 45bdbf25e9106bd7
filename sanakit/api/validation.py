"""Does a component work by itself? Stage component, with its gates."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sanakit.api.load import load_text_encoder, load_vae
from sanakit.api.options import as_seed
from sanakit.api.session import Device, opened_swap
from sanakit.contracts import GateResult
from sanakit.data.cache import Progress
from sanakit.errors import SanakitError, did_you_mean
from sanakit.registry import with_scheme
from sanakit.reporting.notebook import fragment
from sanakit.swap.stages import run_stages
from sanakit.text_encoders import TEXT_ENCODERS, TextEncoder
from sanakit.vaes import VAE, VAES
from sanakit.vaes.diffusers_vae import ALLOWED_CLASSES

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("gate", "verdict", "metric", "value", "ci_low", "ci_high", "threshold", "code", "hint")


@dataclass(frozen=True, kw_only=True, repr=False)
class Validation:
    """record: validation.json as the command line prints it. gates: of every stage that ran. run_dir: the run folder,
    where one was asked for."""

    record: Mapping[str, Any]
    gates: tuple[GateResult, ...]
    run_dir: Path | None = None

    @property
    def verdict(self) -> str:
        """pass, fail or inconclusive: the worst of the gates."""
        return str(self.record["verdict"])

    @property
    def failed(self) -> list[GateResult]:
        return [gate for gate in self.gates if gate.verdict == "fail"]

    def as_dict(self) -> dict[str, Any]:
        return dict(self.record)

    def to_frame(self) -> "pd.DataFrame":
        """One row a gate."""
        import pandas as pd

        return pd.DataFrame([gate.as_dict() for gate in self.gates])

    def __repr__(self) -> str:
        failed = ", ".join(gate.gate for gate in self.failed) or "none"
        pair = f"{self.record['candidate']} beside {self.record['base']}"
        return f"<Validation {self.verdict}: {pair}, {len(self.gates)} gates, failed: {failed}>"

    def _repr_html_(self) -> str:
        order = ("fail", "inconclusive", "pass")
        gates = sorted((gate.as_dict() for gate in self.gates), key=lambda gate: order.index(gate["verdict"]))
        counts = [f"{sum(g['verdict'] == v for g in gates)} {v}" for v in order]
        rows = [{key: gate[key] for key in SHOWN} for gate in gates]
        for row in rows:
            row["hint"] = "" if row["verdict"] == "pass" else row["hint"]  # it says what to do against a failure
        told = f"{self.record['candidate']} beside {self.record['base']}: gates {', '.join(counts)}"
        return fragment("Validation", self.verdict, [told], rows)


def validate(
    component: Any,
    *,
    base: Any = None,
    data: Any,
    policy: str = "default",
    seed: int = 0,
    run_dir: str | os.PathLike[str] | None = None,
    on_step: Progress | None = None,
    device: Device = "auto",
) -> Validation:
    """A VAE or a text encoder, measured by itself and beside the base's own.

    component: a registered name, a live diffusers autoencoder, or what `load_vae` and `load_text_encoder` return. base:
    what `load_base` takes; None measures the component alone. data: what `load_images` takes. policy: default, strict,
    or a YAML file. run_dir: keeps the run folder. on_step: called with (label, done, total). device: as `--device`.
    Raises SK0104 for a name that does not tell what it is, SK0905 for a device that is not there.
    """
    kind, given = kind_of(component)
    options: dict[str, Any] = {"run_dir": run_dir, "policy": policy, "progress": on_step, "stages": ["component"]}
    options["device"] = device
    with opened_swap(base, kind, given, data, sections={"train": {"seed": as_seed(seed)}}, **options) as swap:
        return validation_of(run_stages(swap, ["component"]), run_dir)


def validation_of(record: Mapping[str, Any], run_dir: str | os.PathLike[str] | None) -> Validation:
    gates = [GateResult.from_dict(gate) for stage in record["stages"].values() for gate in stage["gates"]]
    return Validation(record=record, gates=tuple(gates), run_dir=None if run_dir is None else Path(run_dir))


def kind_of(component: Any) -> tuple[str, Any]:
    """vae or text_encoder, and the name or the wrapped object. Raises SK0101, SK0104, SK0106."""
    if isinstance(component, VAE):
        return "vae", component
    if isinstance(component, TextEncoder):
        return "text_encoder", component
    if isinstance(component, nn.Module):
        if type(component).__name__ in ALLOWED_CLASSES:
            return "vae", load_vae(component)
        return "text_encoder", load_text_encoder(component)
    if not isinstance(component, str):
        raise SanakitError(
            "SK0104",
            f"a {type(component).__name__} does not tell whether it is a VAE or a text encoder",
            fix="Give sk.load_vae(...) or sk.load_text_encoder(...).",
        )
    plain = component.partition("?")[0]
    for kind, names in (("vae", VAES.names()), ("text_encoder", TEXT_ENCODERS.names())):
        if plain in names:
            return kind, component
    if plain.partition(":")[0] in ("path", "hub"):
        raise SanakitError(
            "SK0104",
            f"{component!r} does not tell whether it is a VAE or a text encoder",
            fix="Give sk.load_vae(...) or sk.load_text_encoder(...).",
        )
    known = [*VAES.names(), *TEXT_ENCODERS.names()]
    raise SanakitError(
        "SK0101",
        f"no VAE or text encoder named {component!r}{did_you_mean(plain, known)}",
        fix=f"Give {wanted}." if (wanted := with_scheme(plain)) else None,
    )
