"""Thresholds of gates as a policy: `default`, `strict`, or a YAML file that overrides single gates.

A threshold is either what the gate's words mean (DEFINITIONS), or it stands between what clean systems read in A/A runs
(experiments/calibrate_gates.py) and the nearest planted fault (experiments/fault_catalogue.py): beyond the 95% quantile of
the worst clean system by at least the way from its median to that quantile, twice that way for `default`. docs/gates.md has
both readings of every gate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sanakit.contracts import GateResult, Verdict, judge, samples_to_decide
from sanakit.errors import SanakitError, did_you_mean
from sanakit.hashing import hash_record
from sanakit.registry import Registry

# gate: (default, strict)
THRESHOLDS: dict[str, tuple[float, float]] = {
    "component/finite-latents": (0, 0),
    "component/geometry": (0, 0),
    "component/repeatable-latents": (1e-3, 1e-4),
    "component/normalisation": (1e-3, 1e-4),
    "component/input-range": (1.25, 1.1),
    "component/channel-order": (0.5, 0.25),
    "component/orientation": (0.5, 0.25),
    "component/seams": (1.65, 1.55),
    "component/reconstruction": (3.0, 4.0),
    "component/scale-high": (1.6, 1.4),
    "component/scale-low": (0.55, 0.6),
    "component/shift": (1.5, 1.25),
    "component/collapse": (0.35, 0.45),
    "component/dead-channels": (0.02, 0.1),
    "component/finite-embeddings": (0, 0),
    "component/hidden-states": (0, 0),
    "component/repeatable-embeddings": (1e-3, 1e-4),
    "component/prompts-kept": (0, 0),
    "component/mask": (0.9, 0.7),
    "component/padding-side": (0.5, 0.75),
    "component/padding": (0.06, 0.03),
    "component/instruction": (1e-3, 1e-2),
    "component/null": (0.15, 0.07),
    "component/tokens-differ": (0.99, 0.97),
    "component/prompts-differ": (0.98, 0.95),
    "component/words-read": (0.1, 0.2),
    "component/meaning": (0.1, 0.15),
    "component/truncation": (0.05, 0.01),
    "smoke/base": (0, 0),
    "smoke/mask": (-0.05, -0.02),
    "smoke/data-order": (1, 1),
    "smoke/flow-shift": (1.2, 1.1),
    "smoke/moved": (0, 0),
    "smoke/average": (1e-3, 1e-2),
    "smoke/alignment": (0, 0),
    "smoke/progress": (0, 0),
    "smoke/prompt-effect": (0.25, 0.4),
    "smoke/control": (0, 0.05),
    "smoke/samples": (1.6, 1.4),
    "smoke/within-reach": (1.5, 1.25),
    "full/latent-drift": (0, 0),
    "full/progress": (0, 0),
    "full/prompt-effect": (0.5, 0.7),
    "full/samples": (1.6, 1.4),
    "full/quality": (1.25, 1.1),
    "tune/equivariance": (0, 0),
    "tune/reconstruction": (0, 0),
}
DEFINITIONS: dict[str, str] = {
    "component/finite-latents": "none may be NaN or Inf",
    "component/geometry": "what is measured is what is declared",
    "component/repeatable-latents": "numerical identity, the same batch twice",
    "component/normalisation": "numerical identity",
    "component/finite-embeddings": "none may be NaN or Inf",
    "component/hidden-states": "the width is the hidden states', not the vocabulary's",
    "component/repeatable-embeddings": "numerical identity, the same batch twice",
    "component/prompts-kept": "none may be lost",
    "component/words-read": "a tolerance: by a tenth of a token's norm",
    "component/meaning": "a tolerance: a tenth of correlation above random weights, strict 0.15",
    "component/truncation": "a tolerance: the share of prompts cut beyond the base's that one bears",
    "smoke/base": "better than knowing nothing but the latents' power",
    "smoke/data-order": "an epoch is every picture once",
    "smoke/moved": "none may stand still or stray",
    "smoke/alignment": "better than a fresh start, paired",
    "smoke/progress": "better than the start, paired",
    "smoke/prompt-effect": "a tolerance: a quarter of the base's prompt gain, strict two fifths, paired",
    "smoke/control": "better than random weights, strict by a twentieth of the base's prompt gain, paired",
    "smoke/within-reach": "a tolerance: what a short race calls near",
    "full/latent-drift": "none; the monitors bound false alarms by monitors.alpha a run",
    "full/progress": "better than the start, paired",
    "full/prompt-effect": "a tolerance: half of the base's prompt gain, strict seven tenths, paired",
    "full/quality": "a tolerance: the base's error and a quarter, strict a tenth",
    "tune/equivariance": "better than before, paired",
    "tune/reconstruction": "a tolerance: 1 dB, in the metric",
}
BUILTIN = ("default", "strict")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """name: what was asked for. thresholds: of every gate that differs from its own default."""

    name: str = "default"
    thresholds: tuple[tuple[str, float], ...] = ()

    @property
    def fingerprint(self) -> str:
        return hash_record(list(self.thresholds))[:16]

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "fingerprint": self.fingerprint, "thresholds": dict(self.thresholds)}

    def apply(self, results: Sequence[GateResult]) -> list[GateResult]:
        """The results judged by this policy, whatever they were judged by before; nothing is measured again."""
        own = dict(self.thresholds)
        return [r if r.error else rejudged(r, own.get(r.gate, threshold(r.gate, r.threshold))) for r in results]


def threshold(gate: str, otherwise: float | None = None) -> float:
    """The default threshold of a gate of sanakit; a plugin's gate keeps its own."""
    if gate in THRESHOLDS:
        return float(THRESHOLDS[gate][0])
    assert otherwise is not None, gate
    return otherwise


def rejudged(result: GateResult, limit: float) -> GateResult:
    if limit == result.threshold or result.at_least is None:
        return result
    if not result.decidable:
        return replace(result, threshold=limit)
    span: dict[str, Any] = {"ci_low": result.ci_low, "ci_high": result.ci_high}
    verdict = judge(result.value, limit, at_least=result.at_least, above=result.above, **span)
    if result.gate in ADVISORY and verdict == Verdict.FAIL:
        verdict = Verdict.INCONCLUSIVE
    undecided = verdict == Verdict.INCONCLUSIVE
    needed = samples_to_decide(result.value, limit, samples=result.samples, **span) if undecided else None
    return replace(result, threshold=limit, verdict=verdict, samples_needed=needed)


ADVISORY = ("smoke/within-reach",)  # a short race cannot show that the base is out of reach


def load_policy(name: str, known: Sequence[str] = tuple(THRESHOLDS)) -> Policy:
    """`default`, `strict`, or a YAML file `thresholds: {GATE: number}`, optionally with `from: strict`.

    known: names of gates, plugins' included. Raises SK0113 for unknown keys, gates or values.
    """
    if name in BUILTIN:
        strict = tuple((g, float(s)) for g, (d, s) in THRESHOLDS.items() if s != d) if name == "strict" else ()
        return Policy(name=name, thresholds=strict)
    path = Path(name).expanduser()
    if not path.is_file():
        raise SanakitError(
            "SK0113", f"no policy {name!r}{did_you_mean(name, list(BUILTIN))}; known: {', '.join(BUILTIN)}, or a file"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise SanakitError("SK0113", f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise SanakitError("SK0113", f"{path} holds {type(values).__name__}, expected `thresholds:`")
    _refuse(path, "key", values, ["from", "thresholds"])
    base = values.get("from", "default")
    if base not in BUILTIN:
        raise SanakitError("SK0113", f"{path}: from is {base!r}, expected {' or '.join(BUILTIN)}")
    changes = values.get("thresholds") or {}
    if not isinstance(changes, dict):
        raise SanakitError("SK0113", f"{path}: thresholds is {changes!r:.60}, expected GATE: number")
    _refuse(path, "gate", changes, list(known))
    for gate, limit in changes.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float) or limit != limit:
            raise SanakitError("SK0113", f"{path}: {gate} is {limit!r:.60}, expected a number")
    merged = dict(load_policy(base).thresholds) | {g: float(v) for g, v in changes.items()}
    return Policy(name=str(path), thresholds=tuple(sorted(merged.items())))


def _refuse(path: Path, what: str, found: dict[Any, Any], known: list[str]) -> None:
    for key in found:
        if key not in known:
            raise SanakitError("SK0113", f"{path}: unknown {what} {key!r:.60}{did_you_mean(str(key), known)}")


def gate_names() -> list[str]:
    """Names of every gate, plugins included, without importing any."""
    return list(Registry[Any]("gates", "sanakit.gates").names())
