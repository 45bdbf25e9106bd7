"""Several streams of a training loop under one object: values go in at every step, readings come out at evaluations.

    watch = Watch(steps=10_000)
    for batch in batches:
        ...
        watch(latents=latents, embeddings=(prompt_embeds, attention_mask))

Between evaluations rows are copied on the device and nothing waits for it. A stream without a reference takes what it
sees before its first evaluation for one: a drift of the loop against its own beginning.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.api.drift import as_tensor
from sanakit.api.monitor import DriftMonitor
from sanakit.api.options import as_count, as_number
from sanakit.contracts import Reading
from sanakit.drift.stream import ALPHA, AT_ONCE, CAUSES, falls_on
from sanakit.errors import SanakitError, did_you_mean
from sanakit.text_encoders import PromptEmbeds

REFERENCE = 320  # rows of a reference that is taken from the loop itself
FEWEST = 32  # with fewer the next evaluation is waited for
MOVING = ("adapters", "activations", "generated", "components")  # kinds that training changes on purpose
Report = Callable[[list[Reading], int], None]


def warn_of_alarms(readings: list[Reading], step: int) -> None:
    """One warning for every reading that alarms."""
    for reading in readings:
        if reading.alarm:
            warnings.warn(f"step {step}: {reading.title}: {reading.value:.3g} at {reading.where}", stacklevel=2)


class Watch:
    """steps: calls in the whole run. references: latents=, embeddings=(values, mask), activations= ... by kind, as
    `sanakit.DriftMonitor` takes them, or None; a kind that is not named here may still be given later, without one.
    num_evaluations, alpha, band, grouped: as of `DriftMonitor`. report: called with the readings of an evaluation and
    the step; by default alarms are warnings. Raises SK0104, SK0701.
    """

    def __init__(
        self,
        *,
        steps: int,
        num_evaluations: int = 8,
        alpha: float = ALPHA,
        band: float = 0.5,
        grouped: bool = False,
        report: Report = warn_of_alarms,
        **references: Any,
    ) -> None:
        steps, num_evaluations = as_count("steps", steps), as_count("num_evaluations", num_evaluations)
        alpha, band = as_number("alpha", alpha, above=0, below=1), as_number("band", band, above=0)
        self.steps, self.every, self.report, self.done = steps, -(-steps // num_evaluations), report, 0
        self.options: dict[str, Any] = {"num_evaluations": num_evaluations, "alpha": alpha, "band": band}
        self.options["grouped"] = grouped
        self.monitors: dict[str, DriftMonitor] = {}
        self.references: dict[str, tuple[Tensor | list[Tensor], Tensor | None]] = {}
        self.collected: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
        for kind, reference in references.items():
            _require_kind(kind)
            if reference is not None:
                self._monitor(kind, *_split(reference, kind))

    @property
    def alarms(self) -> list[Reading]:
        """Every reading that has alarmed, in the order of its step."""
        return sorted((r for monitor in self.monitors.values() for r in monitor.alarms), key=lambda r: r.step)

    @property
    def verdict(self) -> str:
        """drift once a reading has alarmed; no-drift once a stream was evaluated; inconclusive before."""
        verdicts = {monitor.verdict for monitor in self.monitors.values()}
        return next((v for v in ("drift", "no-drift") if v in verdicts), "inconclusive")

    def __call__(self, **values: Any) -> list[Reading]:
        """One step: values by kind, a batch each; the readings where an evaluation belongs here, else none."""
        self.update(**values)
        return self.advance()

    def update(self, **values: Any) -> None:
        """Values of this step, without ending it. Raises SK0104 for a kind that does not exist, SK0701 for values of
        another shape."""
        for kind, given in values.items():
            if kind not in self.monitors and kind not in self.collected:
                _require_kind(kind)
            tensor, mask = _split(given, kind)
            if kind in self.monitors:
                self.monitors[kind].update(tensor, mask)
            else:
                self._collect(kind, tensor, mask)

    def advance(self) -> list[Reading]:
        """End this step; evaluate and report where an evaluation belongs here."""
        self.done += 1
        if self.done % self.every:
            return []
        readings = [r for monitor in self.monitors.values() for r in monitor.compute(self.done)]
        for kind, kept in list(self.collected.items()):
            if sum(len(values) for values, _ in kept) >= FEWEST:
                self._monitor(kind, *joined(kept))
                del self.collected[kind]
        if readings:
            self.report(readings, self.done)
        return readings

    def attach(self, module: nn.Module, kind: str = "activations") -> Any:
        """Watch a module's output, (N, L, D) or (N, C, h, w), at every training forward pass; returns the handle of the
        hook, which `.remove()` ends. Several passes of a step are several updates."""
        _require_kind(kind)

        def observe(module: nn.Module, inputs: Any, output: Any) -> None:
            if module.training and torch.is_grad_enabled():
                self.update(**{kind: output[0] if isinstance(output, tuple) else output})

        return module.register_forward_hook(observe)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on exactly; tensors and plain values."""
        return {
            "done": self.done,
            "references": {kind: _without_none(*pair) for kind, pair in self.references.items()},
            "monitors": {kind: monitor.state_dict() for kind, monitor in self.monitors.items()},
            "collected": {kind: [_without_none(*pair) for pair in kept] for kind, kept in self.collected.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; references come from the state. Raises SK0505 for one of another version."""
        self.done = int(state["done"])
        self.monitors, self.references = {}, {}
        for kind, pair in state["references"].items():
            self._monitor(kind, pair[0], pair[1] if len(pair) > 1 else None)
            self.monitors[kind].load_state_dict(state["monitors"][kind])
        self.collected = {
            kind: [(pair[0], pair[1] if len(pair) > 1 else None) for pair in kept]
            for kind, kept in state["collected"].items()
        }

    def _monitor(self, kind: str, values: Tensor | list[Tensor], mask: Tensor | None) -> None:
        frozen = kind not in MOVING
        options = self.options | {"steps": self.steps, "kind": kind, "frozen": frozen}
        self.monitors[kind] = DriftMonitor(values, mask=mask, **options)
        self.references[kind] = values, mask

    def _collect(self, kind: str, values: Tensor, mask: Tensor | None) -> None:
        """Rows for the reference, spread over the steps before the first evaluation; copied, not read."""
        grouped = self.options["grouped"]
        stride = max(1, self.every * (1 if grouped else AT_ONCE) // REFERENCE)
        kept = self.collected.setdefault(kind, [])
        if falls_on(self.done + 1, stride):
            share = 1 if grouped else -(-REFERENCE * stride // self.every)
            copied = None if mask is None else mask[:share].detach().clone()
            kept.append((values[:share].detach().float().clone(), copied))


def joined(kept: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor | list[Tensor], Tensor | None]:
    """Batches as one reference on the CPU, with the mask of prompts, which are padded to the longest; of several shapes
    one tensor a shape."""
    if kept[0][1] is not None:
        longest = max(values.shape[1] for values, _ in kept)
        values = torch.cat([F.pad(v, (0, 0, 0, longest - v.shape[1])).cpu() for v, _ in kept])
        return values, torch.cat([F.pad(m, (0, longest - m.shape[1])).cpu() for _, m in kept if m is not None])
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for values, _ in kept:
        by_shape.setdefault(tuple(values.shape[1:]), []).append(values.cpu())
    parts = [torch.cat(group) for group in by_shape.values()]
    return parts if len(parts) > 1 else parts[0], None


def metrics_of(readings: list[Reading], prefix: str = "drift/") -> dict[str, float]:
    """Readings as numbers by name, as trackers take them: the effect, its p-value where it has one, and the alarm."""
    metrics: dict[str, float] = {}
    for reading in readings:
        name = f"{prefix}{reading.name}"
        if "NaN" in reading.title:
            name += "/not finite"
        metrics[name] = float(reading.value)
        if reading.p_value is not None:
            metrics[f"{name}/p_value"] = float(reading.p_value)
        metrics[f"{name}/alarm"] = float(reading.alarm)
    return metrics


def _require_kind(kind: str) -> None:
    if kind not in CAUSES:
        raise SanakitError("SK0104", f"no stream of kind {kind!r}{did_you_mean(kind, [*CAUSES])}; {', '.join(CAUSES)}")


def _split(given: Any, kind: str) -> tuple[Tensor, Tensor | None]:
    """Values and mask of a tensor, a pair or prompts."""
    if isinstance(given, PromptEmbeds):
        return given.embeds, given.mask
    if isinstance(given, tuple) and len(given) == 2:
        return as_tensor(given[0], kind), as_tensor(given[1], f"mask of {kind}")
    tensor = as_tensor(given, kind)
    if kind == "embeddings":
        fix = "Give embeddings=(prompt_embeds, attention_mask); without padding torch.ones(N, L)."
        raise SanakitError("SK0701", f"embeddings {tuple(tensor.shape)} without a mask (N, L)", fix=fix)
    return tensor, None


def _without_none(values: Tensor, mask: Tensor | None) -> list[Tensor]:
    return [values] if mask is None else [values, mask]
